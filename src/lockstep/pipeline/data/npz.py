"""The user's own arrays, in an .npz: one reader a task.

A part for validation or for testing has the same names with `validation_` or `test_` before them;
without one, its share is taken.
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
from lockstep.pipeline.data.split import PARTS, split
from lockstep.pipeline.data.stream import (
    PIXEL,
    Decoded,
    NumberStatistics,
    Rows,
    Shape,
    Span,
    TokenStatistics,
    check_finite,
    check_labels,
    expecting,
    of_images,
    share_out,
    take,
)

# The prefix of the names of a part's arrays, by the part.
PREFIXES = ("", "validation_", "test_")

# More than any camera has; of each, the mean and deviation are in the manifest.
MOST_CHANNELS = 1024


class Npz:
    """An .npz, whose arrays are read as streams.

    Raises:
        UserError: it is none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if self.path.exists() and not self.path.is_file():  # a pipe: it may never have anything
            raise UserError(f"{self.path}: is not a file; expected an .npz of your own")
        with self.expecting(), zipfile.ZipFile(self.path) as archive:
            self.members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        names = [*self.members]
        self.own = [0, *(i for i in (1, 2) if any(n.startswith(PREFIXES[i]) for n in names))]
        """The parts that have arrays of their own."""

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

    def prefixes(self) -> list[str]:
        """Return the prefixes of the names of what there is, training first."""
        return [PREFIXES[part] for part in self.own]

    def split(self, labels: list[np.ndarray], dataset: Dataset, names: list[str]) -> np.ndarray:
        """Return the part of each sample, given the labels of each part that has its own arrays."""
        wanted = tuple(part for part in (1, 2) if part not in self.own)
        found = [split(labels[0], dataset, names, str(self.path), parts=wanted)]
        rest = zip(self.own[1:], labels[1:], strict=True)
        return np.concatenate(
            [*found, *(np.full(len(some), part, np.uint8) for part, some in rest)]
        )

    def rows(self, name: str, shape: Shape, which: np.ndarray, dtype: np.dtype) -> Rows:
        """Yield the rows of the arrays `name`, one part's after another, as `dtype`, by part."""
        start = 0
        for prefix in self.prefixes():
            with self.expecting(), self.opened(prefix + name) as (file, kind, full):
                some = which[start : start + full[0]]
                for part, values in share_out(file, shape, some, kind):
                    with np.errstate(over="ignore"):  # what is too large is refused as infinite
                        yield part, values.astype(dtype, copy=False)
            start += full[0]


def images(dataset: Dataset, raw: Path, threads: int) -> Decoded:
    """images (uint8, N x H x W or N x H x W x C) and labels (integers, N)."""
    npz = Npz(Path(str(dataset.path)))
    path = npz.path

    def check(prefix: str) -> tuple[Shape, np.ndarray]:
        """Return the shape of an image of a part, (H, W, C), and the part's labels."""
        npz.check_names(f"{prefix}images", f"{prefix}labels")
        dtype, shape = npz.head(f"{prefix}images")
        if dtype.kind == "f":
            raise UserError(
                f"{path}: {prefix}images is {dtype}, expected uint8, 0 to 255; of numbers from 0 "
                f"to 1 save (255 * images).round().astype(np.uint8)"
            )
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

    shapes, labels = zip(*map(check, npz.prefixes()), strict=True)
    first = labels[0]
    if not len(first):
        raise UserError(f"{path}: images is empty")
    if first.max() > len(first):
        raise UserError(
            f"{path}: labels has {first.max()} for {len(first)} images, so that some class has "
            f"no image; number the classes from 0"
        )
    names = [str(label) for label in range(max(0, int(first.max())) + 1)]
    if first.min() > 0:
        raise UserError(
            f"{path}: labels are {first.min()} to {first.max()}; they begin at 0: subtract "
            f"{first.min()}"
        )
    check_labels(first, names, str(path))
    which = npz.split(list(labels), dataset, names)
    return of_images(
        names,
        np.concatenate(labels),
        which,
        {PARTS[part]: shape for part, shape in zip(npz.own, shapes, strict=True)}
        | ({} if 2 in npz.own else {"test": shapes[0]}),
        npz.rows("images", shapes[0], which, PIXEL),
    )


def numbers(dataset: Dataset, raw: Path, threads: int) -> Decoded:
    """inputs (floats or uint8, N x ... x C) and targets (floats or integers, N or N x K)."""
    npz = Npz(Path(str(dataset.path)))
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
        where, given = f"{path}: {prefix}targets", npz.whole(f"{prefix}targets")
        given = given.reshape(form[0], -1)
        with np.errstate(over="ignore"):
            targets = given.astype(np.float32)
        check_finite(targets, targets.shape[1], where)
        if kind.kind != "f":
            _check_whole(given, targets, where)
        elif not prefix and kind.itemsize > targets.itemsize:
            mean, std = targets.mean(0, np.float64), targets.std(0, np.float64)
            Span(given.shape[1]).add(given).check(mean, std, where)
        return dtype, shape, targets

    (dtype, shape, targets), *others = map(check, npz.prefixes())
    for part, (other, form, more) in zip(npz.own[1:], others, strict=True):
        if (other, form[1:], more.shape[1]) != (dtype, shape[1:], targets.shape[1]):
            prefix = PREFIXES[part]
            raise UserError(
                f"{path}: inputs are {dtype} {shape} with {targets.shape[1]} targets, "
                f"{prefix}inputs {other} {form} with {more.shape[1]}; expected both alike"
            )
    parts = [targets, *(more for _, _, more in others)]
    which = npz.split([np.zeros(len(some), np.int64) for some in parts], dataset, [])
    whole = np.concatenate(parts)
    kept = np.dtype(np.uint8 if dtype == np.uint8 else np.float32)
    *sides, channels = shape[1:]
    span = Span(channels)

    def rows() -> Rows:
        for part, some in npz.rows("inputs", shape[1:], which, dtype):
            if part == "train" and dtype.itemsize > kept.itemsize:
                span.add(some)
            with np.errstate(over="ignore"):
                values = some.astype(kept, copy=False)
            yield part, values

    return Decoded(
        {part: whole[which == i] for i, part in enumerate(PARTS)},
        dict.fromkeys(PARTS, shape[1:]),
        rows(),
        NumberStatistics(shape[1:], str(path), span),
        about={"shape": [channels, *sides], "outputs": targets.shape[1]},
        samples=_counts(which),
        dtype=kept,
    )


def _check_whole(given: np.ndarray, targets: np.ndarray, where: str) -> None:
    """Refuse integers (N x K) that are others in float32, as `targets` has them."""
    with np.errstate(invalid="ignore"):  # one more than the largest may come back
        changed = np.argwhere(targets.astype(given.dtype) != given)
    if len(changed):
        row, column = changed[0]
        raise UserError(
            f"{where}: sample {row} has {given[row, column]}, which float32 rounds to "
            f"{targets[row, column]:.0f}; subtract the mean of all, or save them as float32 if "
            f"that may be"
        )


def tokens(dataset: Dataset, raw: Path, threads: int) -> Decoded:
    """tokens (integers from 0, N x T): a sequence each; -1 where it is over."""
    npz = Npz(Path(str(dataset.path)))
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

    (count, length), *others = map(check, npz.prefixes())
    for part, (_, other) in zip(npz.own[1:], others, strict=True):
        if other != length:
            raise UserError(
                f"{path}: tokens has rows of {length}, {PREFIXES[part]}tokens of {other}; bring "
                f"them to one length, with -1 in the places after the last token"
            )
    counts = [count, *(other for other, _ in others)]
    which = npz.split([np.zeros(some, np.int64) for some in counts], dataset, [])

    def rows() -> Rows:
        for part, some in npz.rows("tokens", (length,), which, np.dtype(np.int64)):
            if (some >= 2**31).any():
                raise UserError(f"{path}: tokens has {some.max()}, expected less than 2**31")
            yield part, some.astype(np.int32)

    return Decoded(
        {},
        dict.fromkeys(PARTS, (length,)),
        rows(),
        TokenStatistics(str(path)),
        about={"shape": [length - 1]},
        samples=_counts(which),
        dtype=np.dtype(np.int32),
    )


def _counts(which: np.ndarray) -> dict[str, int]:
    return {part: int((which == i).sum()) for i, part in enumerate(PARTS)}
