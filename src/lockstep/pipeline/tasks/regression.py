"""Regression: from arrays to K numbers, by the mean squared error."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from lockstep.pipeline.config import Run
from lockstep.pipeline.data.manifest import Manifest
from lockstep.pipeline.tasks.supervised import Found, Normalize, Supervised, in_float32
from lockstep.strategies.task import Loss


class Regression(Supervised):
    """Inputs, float32 or uint8, b x ... x C, and targets, float32, b x K.

    An item is one number: the loss is a mean over samples and targets.
    """

    metrics = ("absolute",)

    @classmethod
    def of(cls, run: Run, manifest: Manifest, device: torch.device) -> "Regression":
        """Return the task of a run on a prepared dataset."""
        normalize = Normalize(manifest.mean, manifest.std, device, scale=1)
        return cls(run, normalize, manifest.shape, device)

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> Loss:
        """Return the sum of the squared errors, and that of the absolute ones.

        Args:
            outputs: b x K.
            targets: float32, b x K.
        """
        errors = in_float32(outputs) - targets
        return Loss(
            errors.square().sum(), targets.numel(), {"absolute": errors.detach().abs().sum()}
        )

    def each(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs - targets).square().mean(dim=1)

    @staticmethod
    def means(totals: dict[str, float]) -> dict[str, float]:
        loss = totals["loss"] / totals["items"]
        return {"loss": loss, "rmse": math.sqrt(loss), "mae": totals["absolute"] / totals["items"]}

    def predict(self, outputs: torch.Tensor, targets: torch.Tensor) -> dict[str, np.ndarray]:
        """Return the loss (float32) and the outputs (float32, K) of each sample."""
        return {
            "loss": self.each(outputs, targets).cpu().numpy(),
            "predicted": outputs.cpu().numpy(),
        }

    def measure(self, targets: np.ndarray, found: Found) -> dict[str, Any]:
        return measure(targets, found["predicted"])

    def tables(
        self, targets: np.ndarray, found: Mapping[str, Found], files: Sequence[str] | None = None
    ) -> dict[str, pd.DataFrame]:
        samples, outputs = targets.shape
        predictions = pd.DataFrame(
            {
                "sample": np.repeat(np.arange(samples), outputs),
                "output": np.tile(np.arange(outputs), samples),
                "target": targets.reshape(-1),
                **{name: of["predicted"].reshape(-1) for name, of in found.items()},
            }
        )
        return {"predictions": predictions}


def measure(targets: np.ndarray, predicted: np.ndarray) -> dict[str, Any]:
    """Return a model's errors, over all samples and targets, and R2, the mean of the targets'.

    A target that never changes has an R2 of 1 where all is right, else of 0.

    Args:
        targets: N x K.
        predicted: N x K.
    """
    exact = targets.astype(np.float64)
    errors = predicted.astype(np.float64) - exact
    squared = errors**2
    spread = ((exact - exact.mean(axis=0)) ** 2).sum(axis=0)
    left = squared.sum(axis=0)
    r2 = np.where(spread > 0, 1 - left / np.where(spread > 0, spread, 1), left == 0)
    loss = float(squared.mean())
    return {
        "loss": loss,
        "rmse": math.sqrt(loss),
        "mae": float(np.abs(errors).mean()),
        "r2": float(r2.mean()),
    }
