"""What strategies have in common: a whole model on each rank, and a step shard by shard."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from lockstep import optimizer
from lockstep.metrics import Metrics
from lockstep.reduce.accumulator import Accumulator
from lockstep.reduce.tree import block
from lockstep.strategies import Setup
from lockstep.strategies.ema import Ema
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
        self.ema = None if setup.run.ema is None else Ema(setup.model, setup.run.ema)

    def update(self, step: int, lr: float) -> None:
        """Have the optimizer take a step with the gradients that are there."""
        optimizer.update(self.optimizer, lr, self.run.clip)
        if self.ema:
            self.ema.update(step)

    def model_state(self) -> dict[str, torch.Tensor]:
        return self.model.state_dict()

    def optimizer_state(self) -> optimizer.State:
        return optimizer.state_of(self.optimizer, self.model)

    def result_state(self) -> dict[str, torch.Tensor]:
        """Return the state_dict of the model that is the result: with averages, where there are
        any."""
        return self.ema.model_state() if self.ema else self.model_state()

    def own_state(self) -> dict[str, torch.Tensor]:
        return self.ema.state() if self.ema else {}

    def load(self, state: optimizer.LazyState, own: Mapping[str, torch.Tensor]) -> None:
        optimizer.load_state(self.optimizer, self.model, state)
        if self.ema:
            self.ema.load(own)

    def alike(self) -> dict[str, torch.Tensor]:
        # A resumed run has rank 0's optimizer on all ranks: what is in it must be everybody's.
        return self.model.state_dict() | self.kept_alike()

    def kept_alike(self) -> dict[str, torch.Tensor]:
        """Return what is kept beside the model, by name."""
        return optimizer.named(self.optimizer_state()) | self.own_state()


def form(
    task: Callable[[nn.Module, Sequence[MicroBatch]], Loss],
    micro_batches: Sequence[MicroBatch],
    accumulator: Accumulator,
    metrics: Metrics,
) -> float:
    """Do the forward and backward passes of this rank's shards, one after the other.

    Returns:
        Their items.
    """
    items = 0.0
    for micro_batch in micro_batches:
        term = accumulator.begin_shard()
        loss = task(accumulator.model, [micro_batch])
        loss.value.backward()
        accumulator.add(micro_batch.shard, term)
        metrics.add(micro_batch.shard, loss.sums())
        items += loss.items
    return items
