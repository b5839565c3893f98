"""A function of the user's own that yields images with labels."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lockstep.errors import UserError
from lockstep.pipeline.config import Dataset
from lockstep.pipeline.data.split import of_names, split
from lockstep.pipeline.data.stream import (
    PIXEL,
    Decoded,
    Rows,
    by_part,
    number_classes,
    of_images,
)
from lockstep.pipeline.own import find


def yielded(dataset: Dataset, raw: Path, threads: int) -> Decoded:
    """What `package.module:function` yields: (image, label) or (image, label, split).

    It is called twice, first to count, and must yield the same both times. An image is uint8,
    H x W or H x W x C, a label a number or a word, and a split train, validation or test.
    """
    name = str(dataset.path)
    make = find(name, "dataset.path", "without arguments", ())
    labels, splits, shape = list[str](), list[str](), None
    for image, label, part in _samples(make, name):
        shape = shape or image.shape
        if image.shape != shape:
            raise UserError(
                f"{name}: sample {len(labels)} is {image.shape}, and the first {shape}; expected "
                f"images of one shape"
            )
        labels.append(str(label))
        splits.append(part)
    if shape is None:
        raise UserError(f"{name}: yields nothing; expected (image, label) of each sample")
    names, numbers = number_classes(labels)
    which, wanted = np.zeros(len(labels), np.uint8), [1, 2]
    if any(splits):
        which = of_names(np.array(splits), name)
        wanted = [part for part in wanted if not (which == part).any()]
    free = which == 0
    which[free] = split(numbers[free], dataset, names, name, parts=tuple(wanted))

    def rows() -> Rows:
        count = 0
        for count, (image, label, _) in enumerate(_samples(make, name), start=1):
            if count > len(labels) or str(label) != labels[count - 1] or image.shape != shape:
                break
            # A copy, for the next sample may come in the same memory.
            yield from by_part(image[None].copy(), which[count - 1 : count])
        else:
            if count == len(labels):
                return
        raise UserError(
            f"{name}: sample {count - 1} was another when it was called again; it must yield the "
            f"same each time"
        )

    return of_images(
        names, numbers, which, dict.fromkeys(("train", "validation", "test"), shape), rows()
    )


def _samples(make: Any, name: str) -> Iterator[tuple[np.ndarray, Any, str]]:
    for number, sample in enumerate(make()):
        if not isinstance(sample, tuple) or len(sample) not in (2, 3):
            raise UserError(
                f"{name}: sample {number} is {type(sample).__name__}, expected (image, label) or "
                f"(image, label, split)"
            )
        image, label, *part = sample
        image = np.asarray(image)
        if image.dtype != PIXEL or image.ndim not in (2, 3) or 0 in image.shape:
            raise UserError(
                f"{name}: image of sample {number} is {image.dtype} {image.shape}, expected uint8, "
                f"H x W or H x W x C"
            )
        yield (image[..., None] if image.ndim == 2 else image), label, part[0] if part else ""
