"""What the tasks have in common: inputs, targets, and a forward pass in the run's precision."""

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from lockstep.determinism import draw_for
from lockstep.errors import UserError
from lockstep.pipeline.config import Run
from lockstep.strategies.task import Loss, MicroBatch

Found = Mapping[str, np.ndarray]
"""What a model makes of each sample, by name: its `loss`, and what else its task wants to know."""


class Normalize(nn.Module):
    """From arrays, b x ... x C, to floats, b x C x ..., of mean 0 and deviation 1.

    The result stays in memory as it was, channels last, which convolutions on CPUs are faster
    with. Deviations of 0 (a channel without content) count as 1.

    Args:
        mean: of each channel.
        std: the deviation of each channel.
        device: where to compute.
        scale: how many of the arrays' units are one of those of `mean` and `std`: 255 for pixels.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
        scale: float = 255,
    ) -> None:
        super().__init__()
        self.mean = torch.tensor(mean, device=device).mul_(scale)
        self.std = torch.tensor([s or 1.0 for s in std], device=device).mul_(scale)
        self._spread: tuple[torch.Tensor, torch.Tensor] | None = None

    def forward(self, arrays: np.ndarray) -> torch.Tensor:
        """Return `arrays` (uint8 or float32, b x ... x C) as float32, b x C x ..."""
        values = torch.from_numpy(arrays).to(self.mean.device, non_blocking=True)
        values = values.movedim(-1, 1).to(torch.float32, copy=True)
        if self._spread is None or self._spread[0].shape[1:] != values.shape[1:]:
            self._spread = self._like(values[:1])
        mean, std = self._spread
        return values.sub_(mean).div_(std)

    def _like(self, one: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and deviation of each element of a sample, as they lie in its memory.

        Broadcast over channels last, they would be taken three at a time: six times as slow.
        """
        around = (1, -1, *[1] * (one.ndim - 2))
        mean, std = (torch.empty_like(one).copy_(of.view(around)) for of in (self.mean, self.std))
        return mean, std


def autocast(run: Run, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Return the context in which the model computes in the run's precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=run.precision == "bfloat16")


class Supervised(ABC):
    """The forward pass and the loss of a run, as strategies want them: whole, or piece by piece.

    Args:
        run: the run's configuration.
        normalize: makes a model's inputs of arrays.
        shape: of an input.
        device: where to compute.
    """

    metrics: tuple[str, ...]
    """The names of what a loss has beside its value and its items."""
    chunk = 250
    """How many samples are evaluated at once: their kernels' shapes do not depend on the ranks."""

    def __init__(
        self,
        run: Run,
        normalize: Callable[[np.ndarray], torch.Tensor],
        shape: tuple[int, ...],
        device: torch.device,
    ) -> None:
        self.run, self.normalize, self.shape, self.device = run, normalize, shape, device

    def __call__(self, model: nn.Module, micro_batches: Sequence[MicroBatch]) -> Loss:
        outputs = self.forward(model, self.inputs(micro_batches))
        loss = self.loss(outputs, self.targets(micro_batches))
        self.check(loss, outputs, micro_batches)
        return loss

    def inputs(self, micro_batches: Sequence[MicroBatch]) -> torch.Tensor:
        """Return the model's inputs, and begin the random numbers that it may draw on the way."""
        first = micro_batches[0]
        draw_for(self.device, "dropout", self.run.seed, first.step, first.shard)
        return self.normalize(_together([m.inputs for m in micro_batches]))

    def targets(self, micro_batches: Sequence[MicroBatch]) -> torch.Tensor:
        """Return what the outputs are compared with."""
        return self.to_targets(_together([m.targets for m in micro_batches]))

    def to_targets(self, array: np.ndarray) -> torch.Tensor:
        """Return targets as they lie on disk as a tensor."""
        return torch.from_numpy(array).to(self.device, non_blocking=True)

    def forward(
        self, model: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor
    ) -> torch.Tensor:
        """Return what a model, or a stage of one, makes of its inputs in the run's precision."""
        with autocast(self.run, self.device):
            return model(inputs)

    @abstractmethod
    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> Loss:
        """Return the sum of the items' losses, and what else is summed over them."""

    @abstractmethod
    def each(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the loss of each sample (b), whatever it counts for in the sum."""

    @abstractmethod
    def predict(self, outputs: torch.Tensor, targets: torch.Tensor) -> dict[str, np.ndarray]:
        """Return what `evaluate` is to know of each sample of a chunk, its `loss` with it."""

    def detail(self, outputs: torch.Tensor) -> dict[str, np.ndarray]:
        """Return what `tables` is to know besides of each sample of a chunk, of the last model."""
        return {}

    @abstractmethod
    def measure(self, targets: np.ndarray, found: Found) -> dict[str, Any]:
        """Return what metrics.json has of a model on a part.

        Args:
            targets: of the part, as they lie on disk.
            found: what `predict` returned, sample by sample in their order.
        """

    def tables(
        self, targets: np.ndarray, found: Mapping[str, Found], files: Sequence[str] | None = None
    ) -> dict[str, pd.DataFrame]:
        """Return the tables beside metrics.json, by name.

        Args:
            targets: of the test set, as they lie on disk.
            found: what `predict` returned, and `detail`, for each model.
            files: the samples' files, where they are of files.
        """
        return {}

    @staticmethod
    @abstractmethod
    def means(totals: dict[str, float]) -> dict[str, float]:
        """Return what history.csv has of an epoch, given the sums over it."""

    def check(self, loss: Loss, outputs: torch.Tensor, micro_batches: Sequence[MicroBatch]) -> None:
        """Stop at a loss that is no finite number, before anything comes of it.

        The rank that finds it ends the job, so no rank's optimizer step is ever saved.

        Raises:
            UserError: it is not; names the step, the shards and the samples.
        """
        if math.isfinite(loss.value.detach()):
            return
        with torch.no_grad():
            each = self.each(outputs.float(), self.targets(micro_batches))
        good = iter(torch.isfinite(each).tolist())
        bad = [
            (m.shard, [int(sample) for sample in m.ids if not next(good)]) for m in micro_batches
        ]
        bad = [some for some in bad if some[1]] or [
            (m.shard, m.ids.tolist()) for m in micro_batches
        ]
        where = "; ".join(
            f"shard {shard}, samples {', '.join(map(str, ids[:5]))}"
            + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
            for shard, ids in bad
        )
        raise UserError(
            f"loss: {loss.value.item()} in step {micro_batches[0].step + 1}: {where}; nothing of "
            f"this step is kept; take a smaller lr, set clip, or look at these samples"
        )

    def example(self) -> torch.Tensor:
        """Return two made-up inputs (float32, 2 x the shape)."""
        size = 2 * math.prod(self.shape)
        return torch.linspace(-1, 1, size, device=self.device).view(2, *self.shape)


def _together(arrays: list[np.ndarray]) -> np.ndarray:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def in_float32(outputs: torch.Tensor) -> torch.Tensor:
    """Return outputs as a loss takes them: what was rounded to bfloat16 goes on in float32."""
    return outputs.float() if outputs.dtype == torch.bfloat16 else outputs
