"""The user's own arrays, in an .npz: one reader a task.

A part for testing has the same names with `test_` before them; without one, a share is taken.
"""

import contextlib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from lockstep.errors import UserError, first_line
from lockstep.files import DAMAGE
from lockstep.pipeline.config import Dataset
from lockstep.pipeline.data.arrays import read_head
from lockstep.pipeline.data.stream import (
    PIXEL,
    Decoded,
    NumberStatistics,
    Rows,
    Shape,
    TokenStatistics,
    check_finite,
    check_labels,
    expecting,
    of_images,
    share_of_all,
    share_of_classes,
    share_out,
    take,
)

# More than any camera has; of each, the mean and deviation are in the manifest.
MOST_CHANNELS = 1024


class Npz:
    """An .npz, whose arrays are read as streams.

    Raises:
        UserError: it is none.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.path = Path(str(dataset.path))
        if self.path.exists() and not self.path.is_file():  # a pipe: it may never have anything
            raise UserError(
                f"dataset.path: {self.path} is not a file; expected an .npz of your own"
            )
        with self.expecting(), zipfile.ZipFile(self.path) as archive:
            self.members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        self.parted = any(name.startswith("test_") for name in self.members)

    def expecting(self) -> contextlib.AbstractContextManager[None]:
        """Make a UserError of what the reader of a damaged file raises."""
        return expecting(self.path, "an .npz of plain arrays")

    @contextlib.contextmanager
    def opened(self, name: str) -> Iterator[tuple[IO[bytes], np.dtype, Shape]]:
        """Open an array: the file at its first element, and what its head says."""
        with zipfile.ZipFile(self.path) as archive, archive.open(self.members[name]) as file:
            try:
                dtype, shape = read_head(file, self.members[name].file_size)
            except DAMAGE as error:
                raise ValueError(f"{name}: {first_line(error)}") from None
            yield file, dtype, shape

    def head(self, name: str) -> tuple[np.dtype, Shape]:
        """Return the type and shape of an array."""
        with self.expecting(), self.opened(name) as (_, dtype, shape):
            return dtype, shape

    def check_names(self, *names: str) -> None:
        """Refuse a file that has not these arrays."""
        if missing := [name for name in names if name not in self.members]:
            has = ", ".join(self.members) or "nothing"
            raise UserError(f"{self.path}: has no array {missing[0]!r}; it has {has}")

    def whole(self, name: str) -> np.ndarray:
        """Return an array as it is."""
        with self.expecting(), self.opened(name) as (file, dtype, shape):
            values = take(file, int(np.prod(shape, dtype=object)) * dtype.itemsize)
            file.read(1)  # at its end the member's checksum is compared
            return values.view(dtype).reshape(shape)

    def rows(self, name: str, shape: Shape, test: np.ndarray, dtype: np.dtype) -> Rows:
        """Yield the rows of an array, of this shape each, by part, as `dtype`."""
        with self.expecting(), self.opened(name) as (file, kind, _):
            for part, some in share_out(file, shape, test, kind):
                with np.errstate(over="ignore"):  # what is too large is refused as infinite
                    yield part, some.astype(dtype, copy=False)

    def all_rows(
        self, name: str, shape: Shape, counts: dict[str, int], test: np.ndarray, dtype: np.dtype
    ) -> Rows:
        """Yield the rows of both parts: of an array each, or shared out by `test`."""
        if not self.parted:
            yield from self.rows(name, shape, test, dtype)
            return
        for part, prefix in (("train", ""), ("test", "test_")):
            chosen = np.full(counts[part], part == "test")
            yield from self.rows(prefix + name, shape, chosen, dtype)


def images(dataset: Dataset, raw: Path, threads: int) -> Decoded:
    """images (uint8, N x H x W or N x H x W x C) and labels (integers, N)."""
    npz = Npz(dataset)
    path = npz.path

    def check(prefix: str) -> tuple[Shape, np.ndarray]:
        """Return the shape of an image of a part, (H, W, C), and the part's labels."""
        npz.check_names(f"{prefix}images", f"{prefix}labels")
        dtype, shape = npz.head(f"{prefix}images")
        plausible = len(shape) in (3, 4) and 0 not in shape[1:] and shape[3:] <= (MOST_CHANNELS,)
        if dtype != np.uint8 or not plausible:
            raise UserError(
                f"{path}: {prefix}images is {dtype} {shape}, expected uint8, "
                f"N x H x W or N x H x W x C"
            )
        if len(shape) == 4 and shape[1] in (1, 3, 4) and shape[3] not in (1, 3, 4):
            raise UserError(
                f"{path}: {prefix}images is {shape}, which looks like N x C x H x W; expected "
                f"N x H x W x C: save images.transpose(0, 2, 3, 1).copy()"
            )
        kind, count = npz.head(f"{prefix}labels")
        if len(count) == 1 and kind.kind in "iu" and count[0] == shape[0]:
            return (*shape[1:], 1)[:3], npz.whole(f"{prefix}labels").astype(np.int64)
        raise UserError(
            f"{path}: {prefix}labels is {kind} {count}, expected {shape[0]} integers, one for each "
            f"image"
        )

    shape, labels = check("")
    if not len(labels):
        raise UserError(f"{path}: images is empty")
    if labels.max() >= len(labels):
        raise UserError(
            f"{path}: labels has {labels.max()} for {len(labels)} images, so that some class has "
            f"no image; number the classes from 0"
        )
    names = [str(label) for label in range(max(0, int(labels.max())) + 1)]
    if npz.parted:
        test_shape, test_labels = check("test_")
        train = npz.rows("images", shape, np.zeros(len(labels), bool), PIXEL)
        test = npz.rows("test_images", test_shape, np.ones(len(test_labels), bool), PIXEL)
        return of_images(
            names,
            {"train": labels, "test": test_labels},
            {"train": shape, "test": test_shape},
            (pair for some in (train, test) for pair in some),
        )
    check_labels(labels, names, str(path))
    chosen = share_of_classes(labels, dataset.test_fraction, names, str(path))
    return of_images(
        names,
        {"train": labels[~chosen], "test": labels[chosen]},
        {"train": shape, "test": shape},
        npz.rows("images", shape, chosen, PIXEL),
    )


def numbers(dataset: Dataset, raw: Path, threads: int) -> Decoded:
    """inputs (floats or uint8, N x ... x C) and targets (floats or integers, N or N x K)."""
    npz = Npz(dataset)
    path = npz.path

    def check(prefix: str) -> tuple[np.dtype, Shape, np.ndarray]:
        """Return the type and shape of a part's inputs, and its targets (float32, N x K)."""
        npz.check_names(f"{prefix}inputs", f"{prefix}targets")
        dtype, shape = npz.head(f"{prefix}inputs")
        if not (dtype.kind == "f" or dtype == np.uint8) or len(shape) < 2 or 0 in shape:
            raise UserError(
                f"{path}: {prefix}inputs is {dtype} {shape}, expected floats or uint8, N x ... x C "
                f"(N x 1 where there is one number each)"
            )
        kind, form = npz.head(f"{prefix}targets")
        if kind.kind not in "fiu" or len(form) not in (1, 2) or form[0] != shape[0] or 0 in form:
            raise UserError(
                f"{path}: {prefix}targets is {kind} {form}, expected numbers, {shape[0]} or "
                f"{shape[0]} x K, a row for each input"
            )
        with np.errstate(over="ignore"):
            targets = npz.whole(f"{prefix}targets").astype(np.float32).reshape(form[0], -1)
        check_finite(targets, targets.shape[1], f"{path}: {prefix}targets")
        return dtype, shape, targets

    dtype, shape, targets = check("")
    chosen = np.zeros(len(targets), bool)
    if npz.parted:
        test_dtype, test_shape, test_targets = check("test_")
        if (test_dtype, test_shape[1:]) != (dtype, shape[1:]) or (
            test_targets.shape[1] != targets.shape[1]
        ):
            raise UserError(
                f"{path}: inputs are {dtype} {shape} with {targets.shape[1]} targets, test_inputs "
                f"{test_dtype} {test_shape} with {test_targets.shape[1]}; expected both alike"
            )
        parts = {"train": targets, "test": test_targets}
    else:
        chosen = share_of_all(len(targets), dataset.test_fraction, str(path))
        parts = {"train": targets[~chosen], "test": targets[chosen]}
    counts = {part: len(array) for part, array in parts.items()}
    kept = np.dtype(np.uint8 if dtype == np.uint8 else np.float32)
    *sides, channels = shape[1:]
    return Decoded(
        parts,
        dict.fromkeys(parts, shape[1:]),
        npz.all_rows("inputs", shape[1:], counts, chosen, kept),
        NumberStatistics(shape[1:], str(path)),
        about={"shape": [channels, *sides], "outputs": targets.shape[1]},
        samples=counts,
        dtype=kept,
    )


def tokens(dataset: Dataset, raw: Path, threads: int) -> Decoded:
    """tokens (integers from 0, N x T): a sequence each; -1 where it is over."""
    npz = Npz(dataset)
    path = npz.path

    def check(prefix: str) -> Shape:
        npz.check_names(f"{prefix}tokens")
        dtype, shape = npz.head(f"{prefix}tokens")
        if dtype.kind not in "iu" or len(shape) != 2 or not shape[0] or shape[1] < 2:
            raise UserError(
                f"{path}: {prefix}tokens is {dtype} {shape}, expected integers, N x T, with two or "
                f"more in a row"
            )
        return shape

    count, length = check("")
    chosen = np.zeros(count, bool)
    if npz.parted:
        test_count, test_length = check("test_")
        if test_length != length:
            raise UserError(
                f"{path}: tokens has rows of {length}, test_tokens of {test_length}; bring them to "
                f"one length, with -1 in the places after the last token"
            )
        counts = {"train": count, "test": test_count}
    else:
        chosen = share_of_all(count, dataset.test_fraction, str(path))
        counts = {"train": int((~chosen).sum()), "test": int(chosen.sum())}

    def rows() -> Rows:
        for part, some in npz.all_rows("tokens", (length,), counts, chosen, np.dtype(np.int64)):
            if (some >= 2**31).any():
                raise UserError(f"{path}: tokens has {some.max()}, expected less than 2**31")
            yield part, some.astype(np.int32)

    return Decoded(
        {},
        dict.fromkeys(counts, (length,)),
        rows(),
        TokenStatistics(str(path)),
        about={"shape": [length - 1]},
        samples=counts,
        dtype=np.dtype(np.int32),
    )
