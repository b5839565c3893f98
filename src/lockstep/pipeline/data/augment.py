"""Augmentation: what becomes of a training image, as a function of (seed, epoch, sample) alone.

Shifts and mirrors are ours, a whole micro-batch at once. What else people expect is torchvision's,
image by image, each with random numbers of its own; mixing takes two images of one micro-batch, and
a micro-batch is the same at any number of ranks.
"""

from collections.abc import Callable

import numpy as np
import torch

from lockstep import random as streams
from lockstep.pipeline.config import Run

Transform = Callable[[np.ndarray, np.ndarray], np.ndarray]


def augment(images: np.ndarray, words: np.ndarray, shift: int, flip: bool) -> np.ndarray:
    """Shift and mirror each image by its own random word.

    Args:
        images: uint8, b x H x W x C.
        words: uint64, b, a random word for each image.
        shift: the largest shift in pixels; what comes in from outside is zero.
        flip: whether half of the images are mirrored left to right.

    Returns:
        New images, as `images`.
    """
    count, height, width, channels = images.shape
    span = np.uint64(2 * shift + 1)
    # Three independent parts of one word; the bias of the remainder is below 2**-20.
    down = ((words & np.uint64(0x7FFFFFFF)) % span).astype(np.intp)
    right = ((words >> np.uint64(31) & np.uint64(0x7FFFFFFF)) % span).astype(np.intp)
    high, wide = height + 2 * shift, width + 2 * shift
    padded = np.zeros((count, high, wide, channels), np.uint8)
    inside = padded[:, shift : shift + height, shift : shift + width]
    inside[...] = images
    if flip:
        mirrored = np.flatnonzero(words >> np.uint64(63))
        # By torch, which moves whole pixels where NumPy moves bytes.
        planes = torch.from_numpy(images[mirrored]).permute(0, 3, 1, 2)
        inside[mirrored] = planes.flip(3).permute(0, 2, 3, 1).numpy()
        right[mirrored] = 2 * shift - right[mirrored]
    # A row of a shifted image is a stretch of memory in a padded one: each is copied at once.
    rows = (np.arange(count) * high + down)[:, None] + np.arange(height)
    starts = (rows * wide + right[:, None]) * channels
    windows = np.lib.stride_tricks.sliding_window_view(padded.reshape(-1), width * channels)
    return windows[starts].reshape(images.shape)


def transform_of(run: Run, height: int, width: int) -> Transform | None:
    """Return torchvision's transforms that a run asks for, if it asks for any.

    The result takes images (uint8, b x H x W x C) and a random word for each (uint64, b), and
    returns new images. Random numbers are drawn from torch's generator, which is seeded by the word
    and set back.
    """
    if run.crop is None and run.augment == "none" and not run.jitter and not run.erase:
        return None
    from torchvision.transforms import v2  # here: it takes a second, and most runs need none of it

    steps: list[torch.nn.Module] = []
    if run.crop is not None:
        steps.append(v2.RandomResizedCrop((height, width), scale=(run.crop, 1.0), antialias=True))
    if run.augment != "none":
        steps.append(v2.TrivialAugmentWide() if run.augment == "trivial" else v2.RandAugment())
    if run.jitter:
        steps.append(v2.ColorJitter(run.jitter, run.jitter, run.jitter))
    if run.erase:
        steps.append(v2.RandomErasing(run.erase))
    together = v2.Compose(steps)

    def transform(images: np.ndarray, words: np.ndarray) -> np.ndarray:
        made = np.empty_like(images)
        with torch.random.fork_rng(devices=[]):
            for image, word, place in zip(images, words, made, strict=True):
                torch.manual_seed(int(word >> np.uint64(1)))
                planes = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
                place[...] = together(planes).numpy().transpose(1, 2, 0)
        return made

    return transform


def mix(
    images: np.ndarray, labels: np.ndarray, run: Run, place: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Mix each image of a micro-batch with another one of it, all by one share.

    By mixup (Zhang et al., "mixup: beyond empirical risk minimization", 2018), pixel by pixel, or
    by CutMix (Yun et al., 2019), which puts a rectangle of the one over the other.

    Args:
        images: uint8, b x H x W x C.
        labels: int64, b.
        run: says which, and the parameter of the shares' beta distribution.
        place: what the random numbers are of: epoch, step and shard.

    Returns:
        New images, and targets (float64, b x 3): both labels, and the share of the first.
    """
    draw = streams.generator("mix", run.seed, *place)
    alpha = run.mixup or run.cutmix
    share = float(draw.beta(alpha, alpha))
    other = streams.permutation(len(images), "mix", run.seed, *place)
    if run.mixup:
        mixed = images * np.float32(share) + images[other] * np.float32(1 - share)
        made = np.rint(mixed).astype(np.uint8)
    else:
        _, height, width, _ = images.shape
        side = np.sqrt(1 - share)
        top, left = draw.integers(height), draw.integers(width)
        rows, columns = round(height * side / 2), round(width * side / 2)
        box = (
            slice(None),
            slice(max(0, top - rows), top + rows),
            slice(max(0, left - columns), left + columns),
        )
        made = images.copy()
        made[box] = images[other][box]
        share = 1 - made[box].size / made.size
    return made, np.stack([labels, labels[other], np.full(len(labels), share)], axis=1)
