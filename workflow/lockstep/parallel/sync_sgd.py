"""sync_sgd: gradients averaged by our own all-reduce on one flat tensor.

`TreeReduction` forms each shard's gradient by itself, with the same kernel shapes at any number of
ranks, and adds them along the fixed tree of `lockstep.comm.tree`: the same bits at any number of
ranks. BatchNorm sees a shard's micro-batch, and its running statistics are averaged by the same
tree. `FastReduction` takes a rank's shards as one batch and adds up ranks by one all_reduce, in
whatever order the backend likes.
"""

import time
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn

from lockstep import optim
from lockstep.comm.tree import Node, TreeReduce, block
from lockstep.comm.world import World
from lockstep.config import Run
from lockstep.data.batches import MicroBatch
from lockstep.parallel import Objective
from lockstep.parallel.flat import Flat


class TreeReduction:
    """Gradients by shard, summed along the fixed tree; with one rank, the strategy `single`."""

    def __init__(self, run: Run, model: nn.Module, objective: Objective, world: World) -> None:
        self.run, self.model, self.objective = run, model, objective
        self.shards: Sequence[int] = block(world.rank, world.size, run.shards)
        self.optimizer = optim.make_optimizer(run, model)
        self.flat = Flat(model)
        self.tree = TreeReduce(
            self.flat.length, run.shards, world.rank, world.size, self.flat.dtype, self.flat.device
        )
        self.communication = 0.0

    def step(self, micro_batches: Sequence[MicroBatch], lr: float) -> torch.Tensor:
        flat, tree = self.flat, self.tree
        stack: list[Node] = []
        # Every shard starts from the buffers that the step's first one found. Those that are no
        # numbers to average (BatchNorm's count of batches) change alike in all of them.
        before = [b.clone() for b in self.model.buffers()]
        statistics = [b for b in before if b.is_floating_point()]
        for micro_batch in micro_batches:
            for buffer, value in zip(self.model.buffers(), before, strict=True):
                buffer.copy_(value)
            term = tree.take().zero_()
            flat.attach(term)
            loss, sums = self.objective(self.model, [micro_batch])
            loss.backward()
            flat.put_changes(term, statistics)
            flat.sums_of(term).copy_(sums)
            tree.add(stack, micro_batch.shard, term)
        started = time.perf_counter()
        total = tree.all_reduce(stack)
        self.communication += time.perf_counter() - started
        sums = flat.sums_of(total).clone()
        total /= self.run.shards
        flat.take_changes(total, statistics)
        flat.attach(total)
        optim.update(self.optimizer, lr, self.run.clip)
        tree.free(total)
        return sums

    def totals(self, sums: torch.Tensor) -> torch.Tensor:
        return sums

    def model_state(self) -> dict[str, torch.Tensor]:
        return self.model.state_dict()

    def optimizer_state(self) -> dict[str, dict[str, torch.Tensor]]:
        return optim.state_of(self.optimizer, self.model)


class FastReduction:
    """A rank's shards as one batch, ranks summed by one all_reduce of the backend's choice."""

    def __init__(self, run: Run, model: nn.Module, objective: Objective, world: World) -> None:
        self.run, self.model, self.objective, self.ranks = run, model, objective, world.size
        self.shards: Sequence[int] = block(world.rank, world.size, run.shards)
        self.optimizer = optim.make_optimizer(run, model)
        self.flat = Flat(model)
        self.total = torch.zeros(self.flat.length, dtype=self.flat.dtype, device=self.flat.device)
        self.flat.attach(self.total)
        self.communication = 0.0

    def step(self, micro_batches: Sequence[MicroBatch], lr: float) -> torch.Tensor:
        flat, total = self.flat, self.total.zero_()
        before = [b.clone() for b in flat.buffers]
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

    def totals(self, sums: torch.Tensor) -> torch.Tensor:
        return sums

    def model_state(self) -> dict[str, torch.Tensor]:
        return self.model.state_dict()

    def optimizer_state(self) -> dict[str, dict[str, torch.Tensor]]:
        return optim.state_of(self.optimizer, self.model)
