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

from lockstep.comm.tree import Node, TreeReduce
from lockstep.comm.world import World
from lockstep.data.batches import MicroBatch
from lockstep.parallel import Objective
from lockstep.parallel.flat import Flat


class TreeReduction:
    """Gradients by shard, summed along the fixed tree; with one rank, the strategy `single`."""

    def __init__(self, model: nn.Module, objective: Objective, world: World, shards: int) -> None:
        self.model, self.objective, self.shards = model, objective, shards
        self.flat = Flat(model)
        self.tree = TreeReduce(
            self.flat.length, shards, world.rank, world.size, self.flat.dtype, self.flat.device
        )
        self.communication = 0.0

    def gradients(self, micro_batches: Sequence[MicroBatch]) -> torch.Tensor:
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
        total /= self.shards
        flat.take_changes(total, statistics)
        flat.attach(total)
        tree.free(total)  # its values stay until the next step takes a buffer
        return sums

    def totals(self, sums: torch.Tensor) -> torch.Tensor:
        return sums


class FastReduction:
    """A rank's shards as one batch, ranks summed by one all_reduce of the backend's choice."""

    def __init__(self, model: nn.Module, objective: Objective, world: World) -> None:
        self.model, self.objective, self.ranks = model, objective, world.size
        self.flat = Flat(model)
        self.total = torch.zeros(self.flat.length, dtype=self.flat.dtype, device=self.flat.device)
        self.flat.attach(self.total)
        self.communication = 0.0

    def gradients(self, micro_batches: Sequence[MicroBatch]) -> torch.Tensor:
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
        return sums

    def totals(self, sums: torch.Tensor) -> torch.Tensor:
        return sums
