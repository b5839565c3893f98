"""What a strategy is told of a task: how inputs, outputs and losses come of micro-batches."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import nn

from lockstep.metrics import Metrics


@dataclass(frozen=True)
class MicroBatch:
    """One shard's part of one step: b samples."""

    ids: np.ndarray
    """Which samples (int64, b)."""
    inputs: np.ndarray
    """What the model is given, as it lies on disk (b x ...)."""
    targets: np.ndarray
    """What its outputs are compared with (b x ...)."""
    step: int
    shard: int


@dataclass(frozen=True)
class Loss:
    """What comes of a forward pass."""

    value: torch.Tensor
    """The sum of the items' losses (a scalar), on which backward is called."""
    items: float
    """How many there are (samples, tokens), or the sum of their weights, exact in any order: the
    step's gradient is divided by all of them."""
    metrics: Mapping[str, torch.Tensor | float] = field(default_factory=dict)
    """Other sums over the items, by name."""

    def sums(self) -> dict[str, float]:
        """Return all sums by name."""
        sums = {"items": float(self.items), "loss": float(self.value.detach())}
        return sums | {name: float(value) for name, value in self.metrics.items()}


def sums_of(task: "Task", shards: int, mine: Iterable[int] | None) -> Metrics:
    """Return running sums of what `Loss.sums` has by name.

    Args:
        shards: S.
        mine: the shards whose losses come up on this rank; None: every rank gets to know all.
    """
    return Metrics(shards, mine, ("items", "loss", *task.metrics))


class Task(Protocol):
    """What a model is trained for: the forward pass and the loss, whole or piece by piece."""

    @property
    def metrics(self) -> Sequence[str]:
        """The names of a loss's metrics."""
        ...

    def __call__(self, model: nn.Module, micro_batches: Sequence[MicroBatch]) -> Loss:
        """Do the forward pass over one or more shards' micro-batches as one batch."""
        ...

    def inputs(self, micro_batches: Sequence[MicroBatch]) -> torch.Tensor:
        """Return the model's inputs, and begin the random numbers that it may draw on the way."""
        ...

    def targets(self, micro_batches: Sequence[MicroBatch]) -> torch.Tensor:
        """Return what the outputs are compared with."""
        ...

    def forward(
        self, model: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor
    ) -> torch.Tensor:
        """Return what a model, or a stage of one, makes of its inputs in the run's precision."""
        ...

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> Loss:
        """Return what a call does, from the model's outputs."""
        ...

    def check(self, loss: Loss, outputs: torch.Tensor, micro_batches: Sequence[MicroBatch]) -> None:
        """Raise a UserError where the loss is no finite number."""
        ...

    def example(self) -> torch.Tensor:
        """Return made-up inputs, of two samples, where the model is."""
        ...
