"""The task of a run, with its tensors."""

import torch

from lockstep.pipeline.config import Run
from lockstep.pipeline.data.manifest import Manifest
from lockstep.pipeline.tasks.classification import Classification
from lockstep.pipeline.tasks.language import Language
from lockstep.pipeline.tasks.regression import Regression
from lockstep.pipeline.tasks.supervised import Supervised

LEARNED = {"classification": Classification, "regression": Regression, "language": Language}


def make(run: Run, manifest: Manifest, device: torch.device) -> Supervised:
    """Return the task of a run on a prepared dataset."""
    return LEARNED[manifest.task].of(run, manifest, device)  # type: ignore[attr-defined]
