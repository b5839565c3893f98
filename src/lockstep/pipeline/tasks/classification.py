"""Classification: from images to a score for each class, by cross entropy."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.nn import functional

from lockstep.pipeline.config import Run
from lockstep.pipeline.data.manifest import Manifest
from lockstep.pipeline.tasks.supervised import Found, Normalize, Supervised, in_float32
from lockstep.strategies.task import Loss


class Classification(Supervised):
    """Images, uint8, b x H x W x C, and labels, int64, b.

    Args:
        names: of the classes; for `evaluate` alone.
    """

    metrics = ("correct",)

    def __init__(
        self,
        run: Run,
        normalize: Callable[[np.ndarray], torch.Tensor],
        shape: tuple[int, ...],
        device: torch.device,
        names: list[str] | None = None,
    ) -> None:
        super().__init__(run, normalize, shape, device)
        self.names = names or []

    @classmethod
    def of(cls, run: Run, manifest: Manifest, device: torch.device) -> "Classification":
        """Return the task of a run on a prepared dataset."""
        normalize = Normalize(manifest.mean, manifest.std, device)
        return cls(run, normalize, manifest.shape, device, manifest.class_names)

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> Loss:
        """Return the sum of the samples' losses, and how many are right.

        Args:
            outputs: the logits, b x classes.
            targets: the labels (int64, b).
        """
        value = functional.cross_entropy(
            in_float32(outputs),
            targets,
            label_smoothing=self.run.label_smoothing,
            reduction="sum",
        )
        correct = (outputs.detach().argmax(dim=1) == targets).sum()
        return Loss(value, len(targets), {"correct": correct})

    def each(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(outputs, targets, reduction="none")

    @staticmethod
    def means(totals: dict[str, float]) -> dict[str, float]:
        return {
            "loss": totals["loss"] / totals["items"],
            "accuracy": totals["correct"] / totals["items"],
        }

    def predict(self, outputs: torch.Tensor, targets: torch.Tensor) -> dict[str, np.ndarray]:
        """Return the loss (float32) and the predicted class (int64) of each sample."""
        return {
            "loss": self.each(outputs, targets).cpu().numpy(),
            "predicted": outputs.argmax(dim=1).cpu().numpy(),
        }

    def evaluate(
        self, targets: np.ndarray, found: Mapping[str, Found]
    ) -> tuple[dict[str, dict[str, Any]], dict[str, pd.DataFrame]]:
        predictions = pd.DataFrame({"sample": np.arange(len(targets)), "label": targets})
        metrics, confusions = {}, []
        for name, of in found.items():
            predictions[name] = of["predicted"]
            metrics[name], confusion = measure(targets, of["predicted"], of["loss"], self.names)
            confusions.append(confusion.assign(model=name))
        return metrics, {"predictions": predictions, "confusion": pd.concat(confusions)}


def measure(
    labels: np.ndarray, predicted: np.ndarray, losses: np.ndarray, names: list[str]
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Return a model's metrics, and its confusion matrix as a table (label, predicted, samples)."""
    from sklearn.metrics import confusion_matrix

    matrix = confusion_matrix(labels, predicted, labels=range(len(names)))
    right, of_class = np.diag(matrix), matrix.sum(axis=1)
    metrics = {
        "accuracy": int(right.sum()) / len(labels),
        "correct": int(right.sum()),
        "loss": float(losses.astype(np.float64).sum() / len(labels)),
        "per_class": {
            name: {"samples": int(n), "correct": int(k), "accuracy": int(k) / int(n)}
            for name, n, k in zip(names, of_class, right, strict=True)
        },
    }
    rows = [
        {"label": names[i], "predicted": names[j], "samples": int(matrix[i, j])}
        for i in range(len(names))
        for j in range(len(names))
    ]
    return metrics, pd.DataFrame(rows)
