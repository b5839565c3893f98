"""Classification: from images to a score for each class, by cross entropy."""

import contextlib
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from lockstep.determinism import draw_for
from lockstep.errors import UserError
from lockstep.pipeline.config import Run
from lockstep.strategies.task import Loss, MicroBatch


class Normalize(nn.Module):
    """From uint8 images, b x H x W x C, to floats, b x C x H x W, of mean 0 and deviation 1.

    The result stays in memory as it was, channels last, which convolutions on CPUs are faster
    with. Deviations of 0 (a channel without content) count as 1.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        super().__init__()
        self.mean = torch.tensor(mean, device=device).mul_(255).view(1, -1, 1, 1)
        self.std = torch.tensor([s or 1.0 for s in std], device=device).mul_(255).view(1, -1, 1, 1)

    def forward(self, images: np.ndarray) -> torch.Tensor:
        """Return `images` (uint8, b x H x W x C) as float32, b x C x H x W."""
        pixels = torch.from_numpy(images).to(self.mean.device, non_blocking=True)
        return pixels.permute(0, 3, 1, 2).float().sub_(self.mean).div_(self.std)


def autocast(run: Run, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Return the context in which the model computes in the run's precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=run.precision == "bfloat16")


class Classification:
    """The forward pass and the loss of a run, as strategies want them: whole, or piece by piece.

    Args:
        run: the run's configuration.
        normalize: makes inputs of images.
        shape: (C, H, W) of an image.
        device: where to compute.
    """

    metrics = ("correct",)

    def __init__(
        self, run: Run, normalize: Normalize, shape: tuple[int, int, int], device: torch.device
    ) -> None:
        self.run, self.normalize, self.shape, self.device = run, normalize, shape, device

    def __call__(self, model: nn.Module, micro_batches: Sequence[MicroBatch]) -> Loss:
        logits = self.forward(model, self.inputs(micro_batches))
        loss = self.loss(logits, self.targets(micro_batches))
        self.check(loss, logits, micro_batches)
        return loss

    def inputs(self, micro_batches: Sequence[MicroBatch]) -> torch.Tensor:
        """Return the model's inputs, and begin the random numbers that it may draw on the way."""
        first = micro_batches[0]
        draw_for(self.device, "dropout", self.run.seed, first.step, first.shard)
        images = [m.inputs for m in micro_batches]
        return self.normalize(images[0] if len(images) == 1 else np.concatenate(images))

    def targets(self, micro_batches: Sequence[MicroBatch]) -> torch.Tensor:
        """Return the labels (int64)."""
        labels = [m.targets for m in micro_batches]
        together = labels[0] if len(labels) == 1 else np.concatenate(labels)
        return torch.from_numpy(together).to(self.device, non_blocking=True)

    def forward(
        self, model: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor
    ) -> torch.Tensor:
        """Return what a model, or a stage of one, makes of its inputs in the run's precision."""
        with autocast(self.run, self.device):
            return model(inputs)

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> Loss:
        """Return the sum of the samples' losses, and how many are right.

        Args:
            outputs: the logits, b x classes.
            targets: the labels (int64, b).
        """
        value = functional.cross_entropy(
            outputs.float() if outputs.dtype == torch.bfloat16 else outputs,
            targets,
            label_smoothing=self.run.label_smoothing,
            reduction="sum",
        )
        correct = (outputs.detach().argmax(dim=1) == targets).sum()
        return Loss(value, len(targets), {"correct": correct})

    def check(self, loss: Loss, outputs: torch.Tensor, micro_batches: Sequence[MicroBatch]) -> None:
        """Stop at a loss that is no finite number, before anything comes of it.

        The rank that finds it ends the job, so no rank's optimizer step is ever saved.

        Raises:
            UserError: it is not; names the step, the shards and the samples.
        """
        if math.isfinite(loss.value.detach()):
            return
        with torch.no_grad():
            each = functional.cross_entropy(
                outputs.float(), self.targets(micro_batches), reduction="none"
            )
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
        """Return two images (float32, 2 x C x H x W)."""
        size = 2 * math.prod(self.shape)
        return torch.linspace(-1, 1, size, device=self.device).view(2, *self.shape)

    @staticmethod
    def means(totals: dict[str, float]) -> dict[str, float]:
        """Return what history.csv has of an epoch, given the sums over it."""
        return {
            "loss": totals["loss"] / totals["items"],
            "accuracy": totals["correct"] / totals["items"],
        }
