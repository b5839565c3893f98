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

from lockstep.reduce.accumulator import Accumulator, total_items
from lockstep.reduce.flat import Flat
from lockstep.reduce.tree import TreeReduce
from lockstep.strategies import Setup
from lockstep.strategies.replicated import Replicated, accumulate
from lockstep.strategies.task import MicroBatch


class TreeReduction(Replicated):
    """Gradients by shard, summed along the fixed tree; with one rank, the strategy `single`."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        world, flat = setup.world, Flat(self.model)
        self.tree = TreeReduce(
            flat.length, self.run.shards, world.rank, world.size, flat.dtype, flat.device
        )
        self.accumulator = Accumulator(self.model, flat, self.tree)

    def step(self, micro_batches: Sequence[MicroBatch], lr: float) -> None:
        mean, _ = accumulate(self.task, micro_batches, self.accumulator, self.metrics)
        self.communication = self.accumulator.communication
        self.update(micro_batches, lr)
        self.tree.free(mean)


class FastReduction(Replicated):
    """A rank's shards as one batch, ranks summed by one all_reduce of the backend's choice."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.ranks = setup.world.size
        self.flat = Flat(self.model)
        self.total = torch.zeros(self.flat.length, dtype=self.flat.dtype, device=self.flat.device)
        self.flat.attach(self.total)

    def step(self, micro_batches: Sequence[MicroBatch], lr: float) -> None:
        flat, total = self.flat, self.total.zero_()
        before = flat.read()
        loss = self.task(self.model, micro_batches)
        loss.value.backward()
        flat.put_changes(total, before)
        self.metrics.add(micro_batches[0].shard, loss.sums())
        started = time.perf_counter()
        dist.all_reduce(total)
        self.communication += time.perf_counter() - started
        flat.divide(total, total_items(loss.items), self.ranks)
        flat.take_changes(total, before)
        self.update(micro_batches, lr)
