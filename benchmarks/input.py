"""The input alone: a batch gathered, shifted, flipped and normalised, ours and a DataLoader's.

    python -m benchmarks.input

128 images of 32 x 32 with three channels, as CIFAR-10 has them; the DataLoader does what
torchvision's transforms do, image by image, without workers, since a rank has one core. Both in
turns; prints the medians of microseconds a batch, and of the ratios within a turn.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch reads it

import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from lockstep.pipeline.config import Run
from lockstep.pipeline.data.arrays import Part
from lockstep.pipeline.data.batches import Batches
from lockstep.pipeline.tasks.supervised import Normalize

IMAGES, BATCH, TURNS, AT_ONCE = 12_800, 128, 15, 20
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)


class Images(Dataset):
    """Images one by one, as torchvision's CIFAR10 gives them."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images, self.labels = images, labels
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def ours(images: np.ndarray, labels: np.ndarray) -> Iterator[None]:
    """Make a batch each time it is asked."""
    batches = Batches(
        Part(images, labels),
        [np.arange(IMAGES)],
        Run(batch=BATCH, shards=1, ranks=1, shift=4, flip=True),
    )
    normalize = Normalize(MEAN, STD, torch.device("cpu"))
    for epoch in range(100):
        for index in range(batches.steps_per_epoch):
            micro_batch = batches.get(epoch, index, 0)
            normalize(micro_batch.inputs)
            torch.from_numpy(micro_batch.targets)
            yield


def theirs(images: np.ndarray, labels: np.ndarray) -> Iterator[None]:
    """Make a batch each time it is asked."""
    while True:
        for _ in DataLoader(Images(images, labels), BATCH, shuffle=True):
            yield


def main() -> None:
    torch.set_num_threads(1)
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (IMAGES, 32, 32, 3), np.uint8)
    labels = np.arange(IMAGES) % 10
    times: dict[Callable[..., Iterator[None]], list[float]] = {ours: [], theirs: []}
    sources = {make: make(images, labels) for make in times}
    for _ in range(TURNS):
        for make, source in sources.items():
            next(source)
            started = time.perf_counter()
            for _ in range(AT_ONCE):
                next(source)
            times[make].append((time.perf_counter() - started) / AT_ONCE)
    ratios = [theirs / ours for ours, theirs in zip(*times.values(), strict=True)]
    print(f"ours        {statistics.median(times[ours]) * 1e6:10,.0f} us a batch")
    print(f"DataLoader  {statistics.median(times[theirs]) * 1e6:10,.0f} us a batch")
    print(
        f"{statistics.median(ratios):.0f} times as fast ({min(ratios):.0f} to {max(ratios):.0f}); "
        f"100 were asked"
    )


if __name__ == "__main__":
    main()
