"""Strategies: how ranks share the work of a step. One module each, one interface.

A strategy says which shards' micro-batches its rank wants, and takes a step with them: forward,
backward, communication, optimizer. What a micro-batch's loss is, it is told by a task.
"""

from __future__ import annotations  # the types below are imported for mypy alone

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from lockstep.strategies import catalogue
from lockstep.strategies.catalogue import Options

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lockstep.distributed.world import World
    from lockstep.metrics import Metrics
    from lockstep.optimizer import LazyState, State
    from lockstep.strategies.task import MicroBatch, Task


class Kept(Protocol):
    """What is saved of a training, and taken on from: what a checkpointer asks for."""

    metrics: Metrics
    """The running sums of what was trained on."""

    def model_state(self) -> dict[str, torch.Tensor]:
        """Return the whole model's state_dict on rank 0; all ranks call it together.

        Its names are those of the model on one process, its values independent of the ranks.
        """
        ...

    def optimizer_state(self) -> State:
        """Return what the optimizer keeps, whole and by parameter name, on rank 0; all call it."""
        ...

    def own_state(self) -> dict[str, torch.Tensor]:
        """Return what else is kept between steps, whole, on rank 0; all call it."""
        ...

    def load(self, state: LazyState, own: Mapping[str, torch.Tensor]) -> None:
        """Go on from what `optimizer_state` and `own_state` returned, on any number of ranks.

        The tensors come one at a time: all ranks go through them in their order, and keep a part.
        The model has the state of `model_state` already.
        """
        ...

    def alike(self) -> dict[str, torch.Tensor]:
        """Return what every rank that has it must have alike, by name."""
        ...


class Strategy(Kept, Protocol):
    """What `train` asks of a strategy."""

    shards: Sequence[int]
    """The shards whose micro-batches this rank wants, in ascending order."""

    communication: float
    """Seconds that this rank has spent in communication so far."""

    def step(self, micro_batches: Sequence[MicroBatch], lr: float) -> None:
        """Do a step's forward and backward passes over this rank's shards, and the update.

        What was trained on is added to `metrics`.
        """
        ...


MakeOptimizer = Callable[["nn.Module"], "torch.optim.Optimizer"]


@dataclass(frozen=True)
class Setup:
    """What a strategy is made of."""

    run: Options
    model: nn.Module
    task: Task
    make_optimizer: MakeOptimizer
    world: World


def keeps_bits(run: Options) -> bool:
    """Return whether the run's strategy gives the same bits at any number of ranks."""
    return catalogue.of(run).keeps_bits


def make(
    run: Options, model: nn.Module, task: Task, make_optimizer: MakeOptimizer, world: World
) -> Strategy:
    """Return the run's strategy, which makes the optimizer as well."""
    module, _, maker = catalogue.of(run).place.partition(":")
    strategy = getattr(importlib.import_module(f"{__name__}.{module}"), maker)
    return strategy(Setup(run, model, task, make_optimizer, world))
