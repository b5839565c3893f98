"""What strategies have in common: a whole model on each rank, and a step shard by shard."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from lockstep import optimizer
from lockstep.metrics import Metrics
from lockstep.reduce.accumulator import Accumulator, total_items
from lockstep.reduce.tree import block
from lockstep.strategies import Setup
from lockstep.strategies.task import Loss, MicroBatch, sums_of


class Replicated:
    """A model and its optimizer, on this rank as on every other; a step is the strategy's own."""

    def __init__(self, setup: Setup) -> None:
        self.run, self.model, self.task = setup.run, setup.model, setup.task
        world, shards = setup.world, setup.run.shards
        self.shards: Sequence[int] = block(world.rank, world.size, shards)
        self.optimizer = setup.make_optimizer(setup.model)
        self.metrics = sums_of(setup.task, shards, self.shards)
        self.communication = 0.0

    def model_state(self) -> dict[str, torch.Tensor]:
        return self.model.state_dict()

    def optimizer_state(self) -> optimizer.State:
        return optimizer.state_of(self.optimizer, self.model)

    def own_state(self) -> dict[str, torch.Tensor]:
        return {}

    def load(self, state: optimizer.LazyState, own: Mapping[str, torch.Tensor]) -> None:
        optimizer.load_state(self.optimizer, self.model, state)

    def alike(self) -> dict[str, torch.Tensor]:
        # A resumed run has rank 0's optimizer on all ranks: what is in it must be everybody's.
        return self.model.state_dict() | optimizer.named(self.optimizer_state())


def accumulate(
    task: Callable[[nn.Module, Sequence[MicroBatch]], Loss],
    micro_batches: Sequence[MicroBatch],
    accumulator: Accumulator,
    metrics: Metrics,
) -> tuple[torch.Tensor, float]:
    """Do the forward and backward passes of this rank's shards, and average over all of them.

    Returns:
        The mean gradients, as `Accumulator.reduce` does, and the items of the global batch.
    """
    accumulator.begin()
    items = 0.0
    for micro_batch in micro_batches:
        term = accumulator.begin_shard()
        loss = task(accumulator.model, [micro_batch])
        loss.value.backward()
        accumulator.add(micro_batch.shard, term)
        metrics.add(micro_batch.shard, loss.sums())
        items += loss.items
    items = total_items(items)
    return accumulator.reduce(items), items
