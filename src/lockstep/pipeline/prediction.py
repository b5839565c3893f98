"""How fast a run would be on more ranks: what a step took, and one sum by the model of `fit`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from lockstep.pipeline.record import Training

if TYPE_CHECKING:  # it loads SciPy
    from lockstep.pipeline.fit import Fit


@dataclass(frozen=True)
class Step:
    """What a step of a run took where it ran."""

    ranks: int
    samples: int
    """B, the global batch."""
    shards: int
    compute: float
    """The seconds of a step, on the median over epochs, without communication."""
    seconds: float
    """All of them."""
    gradients: int
    """Bytes that are summed over the ranks."""


def read_step(training: Training, history: pd.DataFrame) -> Step:
    """Return the step of a run from its record and history.csv."""
    run = training.configuration
    per_epoch = training.steps / len(history)
    compute = history["compute_seconds"] + history["input_seconds"]
    return Step(
        run.ranks,
        run.batch,
        run.shards,
        float(compute.median()) / per_epoch,
        float(history["seconds"].median()) / per_epoch,
        4 * training.trained_parameters,
    )


def weak(step: Step, fit: Fit, ranks: int) -> float:
    """Return the samples per second on so many ranks, each with as many samples as it had."""
    seconds = step.compute + fit.seconds(step.gradients, ranks)
    return step.samples / step.ranks * ranks / seconds


def strong(step: Step, fit: Fit, ranks: int) -> float:
    """Return the samples per second on so many ranks that share the batch of B samples."""
    seconds = step.compute * step.ranks / ranks + fit.seconds(step.gradients, ranks)
    return step.samples / seconds
