"""Classification: from images to a score for each class, by cross entropy."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.nn import functional

from lockstep.errors import UserError
from lockstep.pipeline.config import Run, numbers_of
from lockstep.pipeline.data.manifest import Manifest
from lockstep.pipeline.tasks.supervised import Found, Normalize, Supervised, in_float32
from lockstep.strategies.task import Loss

# Classes up to which predictions.csv has a column of probabilities for each.
MOST_PROBABILITIES = 1000


class Classification(Supervised):
    """Images, uint8, b x H x W x C, and labels, int64, b.

    Args:
        names: of the classes; for `measure` and `tables` alone.
        weights: what a sample's loss counts for, by its class (float32); None: all alike.
    """

    metrics = ("correct", "samples")

    def __init__(
        self,
        run: Run,
        normalize: Callable[[np.ndarray], torch.Tensor],
        shape: tuple[int, ...],
        device: torch.device,
        names: list[str] | None = None,
        weights: np.ndarray | None = None,
    ) -> None:
        super().__init__(run, normalize, shape, device)
        self.names = names or []
        self.weights = None if weights is None else torch.from_numpy(weights).to(device)

    @classmethod
    def of(cls, run: Run, manifest: Manifest, device: torch.device) -> "Classification":
        """Return the task of a run on a prepared dataset.

        Raises:
            UserError: `class_weights` are not as many as there are classes.
        """
        normalize = Normalize(manifest.mean, manifest.std, device)
        names = manifest.class_names
        weights = weights_of(run.class_weights, manifest.counts, len(names))
        return cls(run, normalize, manifest.shape, device, names, weights)

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> Loss:
        """Return the sum of the samples' losses, weighted by class, and how many are right.

        Divided by the items, which are the sum of the samples' weights, it is what torch's
        CrossEntropyLoss(weight) has for a mean.

        Args:
            outputs: the logits, b x classes.
            targets: the labels (int64, b); of mixed images, what `augment.mix` returns.
        """
        if targets.ndim == 2:
            return self._loss_of_mixed(in_float32(outputs), targets)
        value = functional.cross_entropy(
            in_float32(outputs),
            targets,
            weight=self.weights,
            label_smoothing=self.run.label_smoothing,
            reduction="sum",
        )
        samples = len(targets)
        items = samples if self.weights is None else self.weights[targets].double().sum().item()
        correct = (outputs.detach().argmax(dim=1) == targets).sum()
        return Loss(value, items, {"correct": correct, "samples": samples})

    def _loss_of_mixed(self, outputs: torch.Tensor, targets: torch.Tensor) -> Loss:
        """Return the losses of both labels by their shares; right is who says the larger one's."""
        first, second, share = _parts_of_mixed(targets)
        smoothing = self.run.label_smoothing
        one, other = (
            functional.cross_entropy(outputs, labels, label_smoothing=smoothing, reduction="none")
            for labels in (first, second)
        )
        value = (one * share + other * (1 - share)).sum()
        main = torch.where(share >= 0.5, first, second)
        correct = (outputs.detach().argmax(dim=1) == main).sum()
        return Loss(value, len(targets), {"correct": correct, "samples": len(targets)})

    def each(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if targets.ndim == 2:
            first, second, share = _parts_of_mixed(targets)
            return self.each(outputs, first) * share + self.each(outputs, second) * (1 - share)
        return functional.cross_entropy(outputs, targets, reduction="none")

    @staticmethod
    def means(totals: dict[str, float]) -> dict[str, float]:
        return {
            "loss": totals["loss"] / totals["items"],
            "accuracy": totals["correct"] / totals["samples"],
        }

    def predict(self, outputs: torch.Tensor, targets: torch.Tensor) -> dict[str, np.ndarray]:
        """Return the loss (float32) and the predicted class (int64) of each sample."""
        return {
            "loss": self.each(outputs, targets).cpu().numpy(),
            "predicted": outputs.argmax(dim=1).cpu().numpy(),
        }

    def detail(self, outputs: torch.Tensor) -> dict[str, np.ndarray]:
        """Return the probability of each class (float32, b x classes), of not too many classes."""
        if outputs.shape[1] > MOST_PROBABILITIES:
            return {}
        return {"probabilities": outputs.softmax(dim=1).cpu().numpy()}

    def measure(self, targets: np.ndarray, found: Found) -> dict[str, Any]:
        return measure(targets, found["predicted"], found["loss"], self.names)

    def tables(
        self, targets: np.ndarray, found: Mapping[str, Found], files: Sequence[str] | None = None
    ) -> dict[str, pd.DataFrame]:
        names = np.array(self.names, dtype=object)
        columns: dict[str, Any] = {"sample": np.arange(len(targets))}
        if files is not None:
            columns["file"] = files
        columns["label"] = names[targets]
        columns |= {name: names[of["predicted"]] for name, of in found.items()}
        probabilities = found["last"].get("probabilities")
        if probabilities is not None:
            columns |= probability_columns(probabilities, self.names)
        confusions = [
            confusion(targets, of["predicted"], self.names).assign(model=name)
            for name, of in found.items()
        ]
        return {"predictions": pd.DataFrame(columns), "confusion": pd.concat(confusions)}


def probability_columns(probabilities: np.ndarray, names: list[str]) -> dict[str, np.ndarray]:
    """Return a column for each class, `p_<name>`, of probabilities (float32, N x classes)."""
    rounded = probabilities.astype(np.float64).round(6)
    return {f"p_{name}": rounded[:, at] for at, name in enumerate(names)}


def _parts_of_mixed(
    targets: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return both labels (int64, b) of mixed images, and the share of the first (float32, b)."""
    return targets[:, 0].long(), targets[:, 1].long(), targets[:, 2].float()


def weights_of(class_weights: str, counts: Sequence[int], classes: int) -> np.ndarray | None:
    """Return what a sample's loss counts for, by its class (float32), or None: all alike.

    They are rounded to multiples of a 2**-32th of the largest one's power of two: so the sum of
    the weights of up to two million samples is exact in float64, whatever the order.

    Args:
        class_weights: the run's.
        counts: the training samples of each class.
        classes: how many there are.

    Raises:
        UserError: there are more weights than classes, or fewer.
    """
    if class_weights == "none":
        return None
    if class_weights == "balanced":
        each = np.maximum(np.asarray(counts, np.float64), 1)
        weights = sum(counts) / (classes * each)
    else:
        weights = np.array(numbers_of(class_weights))
    if len(weights) != classes:
        raise UserError(
            f"class_weights: {len(weights)} numbers, and there are {classes} classes; give one for "
            f"each, in the order of manifest.json"
        )
    unit = 2.0 ** (math.frexp(weights.max())[1] - 32)
    rounded = np.maximum(np.round(weights.astype(np.float32) / unit), 1) * unit
    return rounded.astype(np.float32)


def measure(
    labels: np.ndarray, predicted: np.ndarray, losses: np.ndarray, names: list[str]
) -> dict[str, Any]:
    """Return a model's metrics.

    Balanced accuracy is the mean recall of the classes that have samples; `majority` is the
    accuracy of who always says the largest class. What would be divided by no samples is 0.
    """
    matrix = _confusion(labels, predicted, len(names))
    right, of_class, said = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    precision = right / np.maximum(said, 1)
    recall = right / np.maximum(of_class, 1)
    f1 = 2 * right / np.maximum(of_class + said, 1)
    return {
        "accuracy": int(right.sum()) / len(labels),
        "balanced_accuracy": float(recall[of_class > 0].mean()),
        "macro_f1": float(f1.mean()),
        "majority": int(of_class.max()) / len(labels),
        "correct": int(right.sum()),
        "loss": float(losses.astype(np.float64).sum() / len(labels)),
        "per_class": {
            name: {
                "samples": int(of_class[at]),
                "correct": int(right[at]),
                "precision": float(precision[at]),
                "recall": float(recall[at]),
                "f1": float(f1[at]),
            }
            for at, name in enumerate(names)
        },
    }


def _confusion(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Return how many samples of each class (row) are said to be of each (column)."""
    pairs = labels.astype(np.int64) * classes + predicted
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def confusion(labels: np.ndarray, predicted: np.ndarray, names: list[str]) -> pd.DataFrame:
    """Return the confusion matrix as a table (label, predicted, samples)."""
    matrix = _confusion(labels, predicted, len(names))
    named = np.array(names, dtype=object)
    return pd.DataFrame(
        {
            "label": named.repeat(len(names)),
            "predicted": np.tile(named, len(names)),
            "samples": matrix.reshape(-1),
        }
    )
