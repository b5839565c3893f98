"""sync_sgd: gradients averaged by our own all-reduce on one flat tensor.

`TreeReduction` forms each shard's gradient by itself, with the same kernel shapes at any number of
ranks, and adds them along the fixed tree of `lockstep.reduce.tree`: the same bits at any number of
ranks. BatchNorm sees a shard's micro-batch, and its running statistics are averaged by the same
tree. `FastReduction` takes a rank's shards as one batch and adds up ranks by one all_reduce, in
whatever order the backend likes.
"""

import time
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn

from lockstep.distributed.world import World
from lockstep.pipeline import optim
from lockstep.pipeline.config import Run
from lockstep.pipeline.data.batches import MicroBatch
from lockstep.reduce.flat import Flat
from lockstep.reduce.tree import TreeReduce, block
from lockstep.strategies import Objective
from lockstep.strategies.replicated import Replicated, mean_of_shards


class TreeReduction(Replicated):
    """Gradients by shard, summed along the fixed tree; with one rank, the strategy `single`."""

    def __init__(self, run: Run, model: nn.Module, objective: Objective, world: World) -> None:
        super().__init__(run, model, objective, block(world.rank, world.size, run.shards))
        self.flat = Flat(model)
        self.tree = TreeReduce(
            self.flat.length, run.shards, world.rank, world.size, self.flat.dtype, self.flat.device
        )

    def step(self, micro_batches: Sequence[MicroBatch], lr: float) -> torch.Tensor:
        mean, sums, seconds = mean_of_shards(
            self.model, self.objective, micro_batches, self.flat, self.tree
        )
        self.communication += seconds
        self.flat.attach(mean)
        optim.update(self.optimizer, lr, self.run.clip)
        self.tree.free(mean)
        return sums


class FastReduction(Replicated):
    """A rank's shards as one batch, ranks summed by one all_reduce of the backend's choice."""

    def __init__(self, run: Run, model: nn.Module, objective: Objective, world: World) -> None:
        super().__init__(run, model, objective, block(world.rank, world.size, run.shards))
        self.ranks = world.size
        self.flat = Flat(model)
        self.total = torch.zeros(self.flat.length, dtype=self.flat.dtype, device=self.flat.device)
        self.flat.attach(self.total)

    def step(self, micro_batches: Sequence[MicroBatch], lr: float) -> torch.Tensor:
        flat, total = self.flat, self.total.zero_()
        before = flat.read()
        loss, sums = self.objective(self.model, micro_batches)
        loss.backward()
        flat.put_changes(total, before)
        flat.sums_of(total).copy_(sums)
        started = time.perf_counter()
        dist.all_reduce(total)
        self.communication += time.perf_counter() - started
        sums = flat.sums_of(total).clone()
        total /= self.ranks
        flat.take_changes(total, before)
        optim.update(self.optimizer, lr, self.run.clip)
        return sums
