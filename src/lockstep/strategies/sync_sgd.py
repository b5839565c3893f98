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

from lockstep.distributed.elastic import together
from lockstep.reduce.accumulator import Accumulator, total_items
from lockstep.reduce.flat import Flat
from lockstep.reduce.tree import TreeReduce, block
from lockstep.strategies import Setup
from lockstep.strategies.replicated import Replicated, form
from lockstep.strategies.task import MicroBatch, sums_of


class TreeReduction(Replicated):
    """Gradients by shard, summed along the fixed tree; with one rank, the strategy `single`."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.world, flat = setup.world, Flat(self.model)
        self.tree = TreeReduce(
            flat.length, self.run.shards, self.world.rank, self.world.size, flat.dtype, flat.device
        )
        self.accumulator = Accumulator(self.model, flat, self.tree)
        # Every rank gets to know each shard's sums: who has formed them may be gone the next time.
        self.metrics = sums_of(setup.task, self.run.shards, None)
        self.sums = sums_of(setup.task, self.run.shards, ())

    def step(self, micro_batches: Sequence[MicroBatch], lr: float) -> None:
        if not self.accumulator.is_under_way:  # else it is taken up again, by fewer ranks
            self.accumulator.begin()
            self.sums.reset()
            self.number = micro_batches[0].step
        form(self.task, micro_batches, self.accumulator, self.sums)
        rows, total = together(self.world, self._sum)
        items = dict(zip(self.sums.names or (), rows.sum(dim=0).tolist(), strict=True))["items"]
        self.accumulator.finish(total, items)
        self.metrics.add_all(self.sums.names or (), rows)
        self.update(self.number, lr)
        self.tree.free(total)
        self.shards = block(self.world.rank, self.world.size, self.run.shards)

    def _sum(self) -> tuple[torch.Tensor, torch.Tensor]:
        started = time.perf_counter()
        found = self.sums.gather(), self.accumulator.sum(keep=self.world.survives)
        self.communication += time.perf_counter() - started
        return found

    def deal_again(self) -> Sequence[int]:
        """Go on with the ranks that there are now, in the middle of a step, too; all of them call
        it. Returns the shards of this one."""
        self.shards = self.accumulator.deal_again(self.world.rank, self.world.size)
        return self.shards


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
        self.update(micro_batches[0].step, lr)
