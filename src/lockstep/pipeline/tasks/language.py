"""Language: from the tokens so far to a score for each next one, by cross entropy."""

import math
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from lockstep.pipeline.config import Run
from lockstep.pipeline.data.manifest import Manifest
from lockstep.pipeline.tasks.supervised import Found, Supervised, in_float32
from lockstep.strategies.task import Loss

PADDING = -1
# Scores that are held at once in an evaluation, in float32: 64 MiB.
MOST_SCORES = 1 << 24


class Language(Supervised):
    """Tokens, int32, b x T, and those that come next, int32, b x T; -1 is none, and counts nothing.

    An item is a token that is to be foretold.

    Args:
        vocabulary: how many tokens there are.
    """

    metrics = ("correct",)

    def __init__(
        self, run: Run, shape: tuple[int, ...], vocabulary: int, device: torch.device
    ) -> None:
        super().__init__(run, self.to_inputs, shape, device)
        self.vocabulary = vocabulary
        self.chunk = max(1, min(self.chunk, MOST_SCORES // (math.prod(shape) * vocabulary)))

    @classmethod
    def of(cls, run: Run, manifest: Manifest, device: torch.device) -> "Language":
        """Return the task of a run on a prepared dataset."""
        return cls(run, manifest.shape, manifest.outputs, device)

    def to_inputs(self, array: np.ndarray) -> torch.Tensor:
        """Return tokens as int64. Padding, which comes last, is token 0: nothing that counts is
        foretold from it."""
        return self.to_targets(array).clamp_min_(0)

    def to_targets(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self.device, torch.int64, non_blocking=True, copy=True)

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> Loss:
        """Return the sum of the tokens' losses, and how many are right.

        Args:
            outputs: the logits, b x T x vocabulary.
            targets: the tokens that come next (int64, b x T).
        """
        value = functional.cross_entropy(
            in_float32(outputs).flatten(0, 1),
            targets.flatten(),
            ignore_index=PADDING,
            reduction="sum",
        )
        correct = (outputs.detach().argmax(dim=2) == targets).sum()
        return Loss(value, int((targets != PADDING).sum()), {"correct": correct})

    def each(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the sum of the losses of each sequence's tokens (float64, b)."""
        losses = functional.cross_entropy(
            outputs.flatten(0, 1), targets.flatten(), ignore_index=PADDING, reduction="none"
        )
        return losses.view(targets.shape).double().sum(dim=1)

    @staticmethod
    def means(totals: dict[str, float]) -> dict[str, float]:
        loss = totals["loss"] / totals["items"]
        return {
            "loss": loss,
            "perplexity": perplexity(loss),
            "accuracy": totals["correct"] / totals["items"],
        }

    def example(self) -> torch.Tensor:
        """Return two made-up sequences (int64, 2 x T)."""
        size = 2 * math.prod(self.shape)
        return (torch.arange(size, device=self.device) % self.vocabulary).view(2, *self.shape)

    def predict(self, outputs: torch.Tensor, targets: torch.Tensor) -> dict[str, np.ndarray]:
        """Return of each sequence the losses' sum (float64), the tokens that count and those that
        are right (int64)."""
        return {
            "loss": self.each(outputs, targets).cpu().numpy(),
            "tokens": (targets != PADDING).sum(dim=1).cpu().numpy(),
            "correct": (outputs.argmax(dim=2) == targets).sum(dim=1).cpu().numpy(),
        }

    def measure(self, targets: np.ndarray, found: Found) -> dict[str, Any]:
        return measure(**found)


def measure(loss: np.ndarray, tokens: np.ndarray, correct: np.ndarray) -> dict[str, Any]:
    """Return a model's metrics, from what `predict` found of each sequence: per token.

    The interval is the normal 95 % one of the mean loss, brought to perplexities. Its standard
    error is that of a ratio of sums over sequences, which need not be equally long, and which it
    takes for independent of one another.
    """
    count, sequences = int(tokens.sum()), len(loss)
    mean = float(loss.sum() / count)
    interval = None
    if sequences > 1:
        apart = float(((loss - mean * tokens) ** 2).sum())
        half = 1.96 * math.sqrt(sequences / (sequences - 1) * apart) / count
        interval = [perplexity(mean - half), perplexity(mean + half)]
    return {
        "loss": mean,
        "perplexity": perplexity(mean),
        "perplexity_interval": interval,
        "accuracy": int(correct.sum()) / count,
        "correct": int(correct.sum()),
        "tokens": count,
    }


def perplexity(loss: float) -> float:
    """Return e to the power of a loss in nats; no more than a float holds."""
    return math.exp(min(loss, 700.0))
