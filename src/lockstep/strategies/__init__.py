"""Strategies: how ranks share the work of a step. One module each, one interface.

A strategy says which shards' micro-batches its rank wants, and takes a step with them: forward,
backward, communication, optimizer. What a micro-batch's loss is, it is told.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import nn

from lockstep.distributed.world import World
from lockstep.pipeline.config import Run
from lockstep.pipeline.data.batches import MicroBatch
from lockstep.pipeline.optim import LazyState, State


class Objective(Protocol):
    """What a model is trained for: the forward pass and the loss, whole or piece by piece."""

    def __call__(
        self, model: nn.Module, micro_batches: Sequence[MicroBatch]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Do the forward pass over one or more shards' micro-batches as one batch.

        Returns the mean loss, on which backward is called, and [sum of losses, number of right
        answers] (float32, 2).
        """
        ...

    def inputs(self, micro_batches: Sequence[MicroBatch]) -> torch.Tensor:
        """Return the model's inputs, and begin the random numbers that it may draw on the way."""
        ...

    def answers(self, micro_batches: Sequence[MicroBatch]) -> torch.Tensor:
        """Return the labels (int64)."""
        ...

    def scores(
        self, model: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor
    ) -> torch.Tensor:
        """Return what a model, or a stage of one, makes of its inputs in the run's precision."""
        ...

    def outcome(
        self, scores: torch.Tensor, answers: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what a call does, from the scores and the labels."""
        ...

    def check(
        self, loss: torch.Tensor, scores: torch.Tensor, micro_batches: Sequence[MicroBatch]
    ) -> None:
        """Raise a UserError where the loss is no finite number."""
        ...


class Strategy(Protocol):
    """What `train` asks of a strategy."""

    shards: Sequence[int]
    """The shards whose micro-batches this rank wants, in ascending order."""

    communication: float
    """Seconds that this rank has spent in communication so far."""

    def step(self, micro_batches: Sequence[MicroBatch], lr: float) -> torch.Tensor:
        """Do a step's forward and backward passes over this rank's shards, and the update.

        Returns [sum of losses, number of right answers] (float32, 2), over the global batch, or
        over this rank's part where `totals` adds up the ranks; or a row for each of its shards.
        """
        ...

    def totals(self, sums: torch.Tensor) -> torch.Tensor:
        """Return an epoch's sums of what `step` returned (float64), over all ranks (2)."""
        ...

    def model_state(self) -> dict[str, torch.Tensor]:
        """Return the whole model's state_dict on rank 0; all ranks call it together.

        Its names are those of the model on one process, its values independent of the ranks.
        """
        ...

    def optimizer_state(self) -> State:
        """Return what the optimizer keeps, whole and by parameter name, on rank 0; all call it."""
        ...

    def own_state(self) -> dict[str, torch.Tensor]:
        """Return what else the strategy keeps between steps, whole, on rank 0; all call it."""
        ...

    def load(self, optimizer: LazyState, own: Mapping[str, torch.Tensor]) -> None:
        """Go on from what `optimizer_state` and `own_state` returned, on any number of ranks.

        The tensors come one at a time: all ranks go through them in their order, and keep a part.
        The strategy has been made with a model that has the state of `model_state`.
        """
        ...

    def share_of(self, sums: torch.Tensor) -> torch.Tensor:
        """Return this rank's running sums, given those of all the ranks that there were (a row
        each): `totals` of these is `totals` of those."""
        ...

    def alike(self) -> dict[str, torch.Tensor]:
        """Return what every rank that has it must have alike, by name."""
        ...


def keeps_bits(run: Run) -> bool:
    """Return whether the run's strategy gives the same bits at any number of ranks."""
    if run.strategy == "sync_sgd":
        return run.reduction == "tree"
    return run.strategy in ("single", "local_sgd", "pipeline", "hybrid", "fsdp")


def make(
    run: Run, model: nn.Module, objective: Objective, world: World, shape: tuple[int, int, int]
) -> Strategy:
    """Return the run's strategy, which makes the optimizer as well.

    Args:
        shape: (C, H, W) of an image.
    """
    if run.strategy == "ddp":
        from lockstep.strategies.ddp import DataParallelByTorch

        return DataParallelByTorch(run, model, objective, world)
    if run.strategy in ("single", "sync_sgd"):
        from lockstep.strategies.sync_sgd import FastReduction, TreeReduction

        kind = TreeReduction if keeps_bits(run) else FastReduction
        return kind(run, model, objective, world)
    if run.strategy == "local_sgd":
        from lockstep.strategies.local_sgd import LocalSGD

        return LocalSGD(run, model, objective, world)
    if run.strategy == "data_parallel":
        from lockstep.strategies.data_parallel import DataParallel

        return DataParallel(run, model, objective)
    if run.strategy == "pipeline":
        from lockstep.strategies.pipeline import pipeline

        return pipeline(run, model, objective, shape)
    if run.strategy == "hybrid":
        from lockstep.strategies.hybrid import hybrid

        return hybrid(run, model, objective, world, shape)
    from lockstep.strategies.fsdp import FullySharded

    return FullySharded(run, model, objective, world, shape)
