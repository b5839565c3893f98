"""What strategies have in common: a whole model on each rank, and a step shard by shard."""

import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from lockstep.pipeline import optim
from lockstep.pipeline.config import Run
from lockstep.pipeline.data.batches import MicroBatch
from lockstep.reduce.flat import Flat
from lockstep.reduce.tree import GatherReduce, Node, TreeReduce
from lockstep.strategies import Objective


class Replicated:
    """A model and its optimizer, on this rank as on every other; a step is the strategy's own.

    Args:
        shards: those whose micro-batches this rank wants.
    """

    def __init__(
        self, run: Run, model: nn.Module, objective: Objective, shards: Sequence[int]
    ) -> None:
        self.run, self.model, self.objective, self.shards = run, model, objective, shards
        self.optimizer = optim.make_optimizer(run, model)
        self.communication = 0.0

    def totals(self, sums: torch.Tensor) -> torch.Tensor:
        return sums

    def share_of(self, sums: torch.Tensor) -> torch.Tensor:
        return sums[0]

    def model_state(self) -> dict[str, torch.Tensor]:
        return self.model.state_dict()

    def optimizer_state(self) -> optim.State:
        return optim.state_of(self.optimizer, self.model)

    def own_state(self) -> dict[str, torch.Tensor]:
        return {}

    def load(self, optimizer: optim.LazyState, own: Mapping[str, torch.Tensor]) -> None:
        optim.load_state(self.optimizer, self.model, optimizer)

    def alike(self) -> dict[str, torch.Tensor]:
        # A resumed run has rank 0's optimizer on all ranks: what is in it must be everybody's.
        return self.model.state_dict() | optim.named(self.optimizer_state())


def mean_of_shards(
    model: nn.Module,
    objective: Callable[[nn.Module, Sequence[MicroBatch]], tuple[torch.Tensor, torch.Tensor]],
    micro_batches: Sequence[MicroBatch],
    flat: Flat,
    tree: TreeReduce | GatherReduce,
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Do the forward and backward passes of this rank's shards, and average over all of them.

    Returns:
        The mean of what `flat` says lies in it (a buffer of the tree's), [sum of losses, right
        answers] (float32, 2) over the global batch, and the seconds of communication. The model's
        buffers are the mean ones.
    """
    stack: list[Node] = []
    before = flat.read()
    for micro_batch in micro_batches:
        flat.restore(before)  # every shard starts from the buffers that the step's first one found
        term = tree.take().zero_()
        flat.attach(term)
        loss, sums = objective(model, [micro_batch])
        loss.backward()
        flat.put_changes(term, before)
        flat.sums_of(term).copy_(sums)
        tree.add(stack, micro_batch.shard, term)
    started = time.perf_counter()
    mean = tree.all_reduce(stack)
    seconds = time.perf_counter() - started
    sums = flat.sums_of(mean).clone()
    mean /= tree.shards
    flat.take_changes(mean, before)
    return mean, sums, seconds
