"""What a model is asked for: images as it wants them, its scores, and how good they are."""

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from lockstep import random as streams
from lockstep.errors import UserError
from lockstep.pipeline.config import Run
from lockstep.pipeline.data.batches import MicroBatch
from lockstep.strategies import Objective


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


@dataclass(frozen=True)
class CrossEntropy:
    """The forward pass and the loss of a run, as strategies want them: whole, or piece by piece."""

    run: Run
    normalize: Normalize
    device: torch.device

    def __call__(
        self, model: nn.Module, micro_batches: Sequence[MicroBatch]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what `outcome` does, for some micro-batches as one batch."""
        scores = self.scores(model, self.inputs(micro_batches))
        loss, sums = self.outcome(scores, self.answers(micro_batches))
        self.check(loss, scores, micro_batches)
        return loss, sums

    def inputs(self, micro_batches: Sequence[MicroBatch]) -> torch.Tensor:
        """Return the model's inputs, and begin the random numbers that it may draw on the way."""
        first = micro_batches[0]
        # Whatever the model draws (dropout), it draws from the step and the shard. Not by
        # torch.manual_seed: where no GPU is in use, that keeps a stack trace of every call.
        seed = streams.torch_seed("dropout", self.run.seed, first.step, first.shard)
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        images = [m.images for m in micro_batches]
        return self.normalize(images[0] if len(images) == 1 else np.concatenate(images))

    def answers(self, micro_batches: Sequence[MicroBatch]) -> torch.Tensor:
        """Return the labels (int64)."""
        labels = [m.labels for m in micro_batches]
        together = labels[0] if len(labels) == 1 else np.concatenate(labels)
        return torch.from_numpy(together).to(self.device, non_blocking=True)

    def scores(
        self, model: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor
    ) -> torch.Tensor:
        """Return what a model, or a stage of one, makes of its inputs in the run's precision."""
        with autocast(self.run, self.device):
            return model(inputs)

    def outcome(
        self, scores: torch.Tensor, answers: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean loss, and [sum of losses, number of right answers] (float32, 2)."""
        loss = functional.cross_entropy(
            scores.float() if scores.dtype == torch.bfloat16 else scores,
            answers,
            label_smoothing=self.run.label_smoothing,
        )
        right = (scores.detach().argmax(dim=1) == answers).sum()
        return loss, torch.stack([loss.detach() * len(answers), right])

    def check(
        self, loss: torch.Tensor, scores: torch.Tensor, micro_batches: Sequence[MicroBatch]
    ) -> None:
        """Stop at a loss that is no finite number, before anything comes of it.

        The rank that finds it ends the job, so no rank's optimizer step is ever saved.

        Raises:
            UserError: it is not; names the step, the shards and the samples.
        """
        if math.isfinite(loss.detach()):
            return
        with torch.no_grad():
            each = functional.cross_entropy(
                scores.float(), self.answers(micro_batches), reduction="none"
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
            f"loss: {loss.item()} in step {micro_batches[0].step + 1}: {where}; nothing of this "
            f"step is kept; take a smaller lr, set clip, or look at these samples"
        )


def check_bfloat16(
    model: nn.Module, rounded: Objective, exact: Objective, batch: MicroBatch
) -> float:
    """Compare the gradient of an objective in bfloat16 with that of the same in float32.

    Some processors and releases compute bfloat16 convolutions wrongly for some shapes, without a
    word. Rounding alone gives a few percent.

    Returns:
        Their distance, relative to the length of the exact one. The model is left as it was.

    Raises:
        UserError: the gradients have little to do with each other.
    """
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = []
    for objective in (exact, rounded):
        loss, _ = objective(model, [batch])
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        gradients.append(torch.cat([g.flatten() for g in found if g is not None]))
        model.load_state_dict(before)
    length = gradients[0].norm().clamp_min(1e-12)
    distance = float((gradients[1] - gradients[0]).norm() / length)
    if not distance < 0.5:
        raise UserError(
            f"precision: in bfloat16 the first gradient is off by {distance:.0%} of its length on "
            f"this processor, expected below 50 %; use precision: float32"
        )
    return distance
