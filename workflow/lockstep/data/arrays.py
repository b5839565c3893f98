"""Images and labels on disk: arrays that are memory-mapped and never read whole.

A part of a dataset ("train" or "test") is a folder of two files:
`images.npy`, uint8, N x H x W x C, the layout that a CPU's convolutions are fastest with; and
`labels.npy`, int64, N. All ranks of a host share one copy of them in the page cache.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lockstep.errors import UserError


@dataclass(frozen=True)
class Part:
    """The images (uint8, N x H x W x C, memory-mapped) and labels (int64, N) of one part."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


def open_part(folder: Path) -> Part:
    """Map the arrays in `folder` for reading.

    Raises:
        UserError: a file is missing, cut short, or not such an array.
    """
    arrays = []
    for name in ("images", "labels"):
        path = folder / f"{name}.npy"
        try:
            arrays.append(np.load(path, mmap_mode="r", allow_pickle=False))
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: not a whole array ({error}); run `prepare` again") from None
    images, labels = arrays
    if images.dtype != np.uint8 or images.ndim != 4 or len(images) != len(labels):
        raise UserError(
            f"{folder}: expected uint8 images of N x H x W x C and N labels, found "
            f"{images.dtype} {images.shape} and {labels.shape}; run `prepare` again"
        )
    return Part(images, labels)


def moments(images: np.ndarray, chunk: int = 1024) -> tuple[list[float], list[float]]:
    """Return the mean and the standard deviation of each channel, of pixels scaled to 0..1.

    `images` (uint8, N x H x W x C) is read in chunks; the sums are of integers, so they are exact.
    """
    channels = images.shape[-1]
    total = np.zeros(channels, np.uint64)
    squares = np.zeros(channels, np.uint64)
    for start in range(0, len(images), chunk):
        pixels = images[start : start + chunk].reshape(-1, channels).astype(np.uint64)
        total += pixels.sum(axis=0)
        squares += (pixels * pixels).sum(axis=0)
    count = images[..., 0].size
    mean = total / count
    deviation = np.sqrt(squares / count - mean**2)
    return (mean / 255).tolist(), (deviation / 255).tolist()
