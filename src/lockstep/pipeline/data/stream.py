"""A dataset on its way to disk: rows of arrays as a stream, whatever their number and size."""

import contextlib
import gzip
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from lockstep.errors import UserError, first_line
from lockstep.files import DAMAGE
from lockstep.pipeline.data.arrays import FloatMoments, Moments
from lockstep.pipeline.data.split import PARTS

# Bytes of rows that are handled at once: they fit a processor's cache, and are many samples or a
# piece of one.
BLOCK = 4 << 20

DOWNLOAD_AGAIN = "; download again (snakemake --forcerun download)"

PIXEL = np.dtype(np.uint8)

File = IO[bytes] | gzip.GzipFile
Shape = tuple[int, ...]
Rows = Iterator[tuple[str, np.ndarray]]


class Statistics(Protocol):
    """What is found out of the first array of a dataset as its rows go by."""

    def add(self, part: str, rows: np.ndarray) -> None:
        """Take the next rows of a part, or a piece of one.

        Raises:
            UserError: the task cannot be learned from them.
        """
        ...

    def words(self) -> dict[str, Any]:
        """Return what the manifest has of it: `mean` and `std`, and what else there is."""
        ...


class PixelStatistics:
    """The moments of the training images' channels, for pixels scaled to 0..1."""

    def __init__(self, channels: int) -> None:
        self.moments = Moments(channels)

    def add(self, part: str, rows: np.ndarray) -> None:
        if part == "train":
            self.moments.add(rows)

    def words(self) -> dict[str, Any]:
        mean, std = self.moments.of_unit()
        return {"mean": mean, "std": std}


class NumberStatistics:
    """The moments of the training inputs' channels; all inputs must be finite.

    Args:
        shape: of a sample, channels last.
        where: the file, for messages.
        span: of the training inputs, before they were brought to float32.
    """

    def __init__(self, shape: Shape, where: str, span: "Span") -> None:
        self.size, self.where, self.span = math.prod(shape), where, span
        self.moments = FloatMoments(shape[-1])
        self.seen = dict.fromkeys(PARTS, 0)

    def add(self, part: str, rows: np.ndarray) -> None:
        check_finite(rows.reshape(-1), self.size, f"{self.where}, {part}: inputs", self.seen[part])
        self.seen[part] += rows.size
        if part == "train":
            self.moments.add(rows)

    def words(self) -> dict[str, Any]:
        mean, std = self.moments.of_numbers()
        self.span.check(np.array(mean), np.array(std), f"{self.where}: inputs")
        return {"mean": mean, "std": std}


class Span:
    """The smallest and the largest number of each channel, to see what float32 leaves of them."""

    def __init__(self, channels: int) -> None:
        self.low, self.high = np.full(channels, np.inf), np.full(channels, -np.inf)

    def add(self, rows: np.ndarray) -> "Span":
        """Take some numbers (... x C)."""
        flat = rows.reshape(-1, len(self.low))
        self.low = np.minimum(self.low, flat.min(axis=0))
        self.high = np.maximum(self.high, flat.max(axis=0))
        return self

    def check(self, mean: np.ndarray, std: np.ndarray, where: str) -> None:
        """Refuse a channel whose numbers were different, and in float32 hardly are.

        Args:
            mean: of each channel, in float32.
            std: the standard deviation, as well.
            where: what they are, for messages.
        """
        size = np.maximum(np.abs(self.low), np.abs(self.high))
        # Less than 2**-40 of a number may be what float64 itself has rounded.
        differ = self.high - self.low > 2.0**-40 * size
        lost = np.flatnonzero(differ & (std < 2.0**-20 * np.abs(mean)))
        if len(lost):
            low, high = float(self.low[lost[0]]), float(self.high[lost[0]])
            raise UserError(
                f"{where}: channel {lost[0]} goes from {low!r} to {high!r}, which float32 hardly "
                f"tells apart; subtract its mean, and divide by its deviation, before saving it"
            )


class TokenStatistics:
    """The size of the vocabulary; sequences must be of tokens, two at least, and then padding.

    Args:
        where: the file, for messages.
    """

    def __init__(self, where: str) -> None:
        self.where, self.largest = where, 0
        self.seen = dict.fromkeys(PARTS, 0)

    def add(self, part: str, rows: np.ndarray) -> None:
        check_tokens(rows, 2, f"{self.where}, {part}", self.seen[part])
        self.seen[part] += len(rows)
        self.largest = max(self.largest, int(rows.max()))

    def words(self) -> dict[str, Any]:
        return {"outputs": self.largest + 1, "mean": [], "std": []}


def check_tokens(rows: np.ndarray, fewest: int, where: str, before: int = 0) -> None:
    """Refuse what is no sequence of tokens, and then padding.

    Args:
        rows: sequences (integers, N x T).
        fewest: how many tokens each must have.
        where: what they are, for messages.
        before: how many sequences came before.

    Raises:
        UserError: names the first that is none.
    """
    there = rows >= 0
    wrong = (rows < -1).any(1) | (there[:, 1:] & ~there[:, :-1]).any(1)
    wrong |= ~there[:, :fewest].all(1)
    if wrong.any():
        at = int(np.flatnonzero(wrong)[0])
        raise UserError(
            f"{where}: sequence {before + at} begins with {rows[at, :5].tolist()}; expected "
            f"{fewest} or more tokens, which are 0 or more, and -1 in the places after the last"
        )


def check_finite(values: np.ndarray, size: int, where: str, before: int = 0) -> None:
    """Refuse what is no finite number in float32.

    Args:
        values: of samples that have `size` of them each.
        size: how many a sample has.
        where: what they are, for messages.
        before: how many came before.

    Raises:
        UserError: names the first sample that has one.
    """
    if values.dtype.kind == "f" and not (good := np.isfinite(values)).all():
        at = int(np.flatnonzero(~good.reshape(-1))[0])
        raise UserError(
            f"{where}: sample {(before + at) // size} has {values.reshape(-1)[at]}, expected "
            f"numbers that float32 holds"
        )


@dataclass(frozen=True)
class Decoded:
    """A dataset on its way to disk, by part: "train", "validation" (which may be empty), "test".

    Args:
        targets: N x ..., by part: labels (int64, N) of a classification, K numbers a sample
            (float32, N x K) of a regression; nothing, where the rows hold them.
        shapes: of a sample as it lies on disk, channels last, by part.
        rows: each part's samples one after the other, in arrays of whole ones (n x shape) or of a
            piece of one (n x C), with the name of their part. An array is not written to once it
            was given: it is stored while the next is decoded. What is wrong with them is raised on
            the way.
        statistics: takes the rows as they go by.
        names: of the classes, where there are any.
        about: what else the manifest says.
        samples: N, by part.
        dtype: of the rows.
        sums: the SHA-256 of files that were read for `rows`.
        files: what each sample is, by part, where samples are files: columns of a table.
    """

    targets: dict[str, np.ndarray]
    shapes: dict[str, Shape]
    rows: Rows
    statistics: Statistics
    names: list[str] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)
    samples: dict[str, int] = field(default_factory=dict)
    dtype: np.dtype = PIXEL
    sums: dict[Path, str] = field(default_factory=dict)
    files: dict[str, dict[str, list[str]]] = field(default_factory=dict)


def of_images(
    names: list[str],
    labels: np.ndarray,
    which: np.ndarray,
    shapes: dict[str, Shape],
    rows: Rows,
    **more: Any,
) -> Decoded:
    """Return images with labels, which have classes with names.

    Args:
        names: of the classes.
        labels: of all samples (N), in the order of the rows.
        which: the part of each (N), an index of PARTS.
        shapes: of an image, by part; without one for validation, it is that of training.
        rows: as in `Decoded`.
        more: what else `Decoded` takes.
    """
    height, width, channels = shapes["train"]
    targets = {part: labels[which == i].astype(np.int64) for i, part in enumerate(PARTS)}
    return Decoded(
        targets,
        {"validation": shapes["train"], **shapes},
        rows,
        PixelStatistics(channels),
        names=names,
        about={"shape": [channels, height, width], "classes": names, **more.pop("about", {})},
        samples={part: len(array) for part, array in targets.items()},
        **more,
    )


def number_classes(labels: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Return the names of classes, in order of numbers, if all are, or of letters; and the number
    of each label's class (int64, N)."""
    found, numbers = np.unique(np.array(labels, dtype=object), return_inverse=True)
    names = [str(name) for name in found]
    if all(map(str.isdecimal, names)):
        order = sorted(range(len(names)), key=lambda at: int(names[at]))
        places = np.empty(len(names), np.int64)
        places[order] = np.arange(len(names))
        names, numbers = [names[at] for at in order], places[numbers]
    return names, numbers.astype(np.int64)


def check_labels(labels: np.ndarray, names: list[str], where: str, whole: bool = True) -> None:
    """Raise a UserError that names a label out of range or, of a whole part, an empty class."""
    wrong = np.flatnonzero((labels < 0) | (labels >= len(names)))
    if len(wrong):
        raise UserError(
            f"{where}: sample {wrong[0]} has label {labels[wrong[0]]}, expected 0 to "
            f"{len(names) - 1}"
        )
    if not whole:
        return
    empty = np.flatnonzero(np.bincount(labels, minlength=len(names)) == 0)
    if len(empty):
        raise UserError(f"{where}: class {names[empty[0]]!r} ({empty[0]}) has no image")


def share_out(file: File, shape: Shape, which: np.ndarray, dtype: np.dtype = PIXEL) -> Rows:
    """Yield the rows in `file`, one for each of `which` (an index of PARTS), by part.

    Raises:
        EOFError, ValueError, or another of DAMAGE: there are fewer, or more follows.
    """
    size = math.prod(shape) * dtype.itemsize
    step = max(1, BLOCK // size)
    for start in range(0, len(which), step):
        chosen = which[start : start + step]
        if size <= BLOCK:
            block = take(file, len(chosen) * size).view(dtype).reshape(-1, *shape)
            yield from by_part(block, chosen)
        else:
            pixel = shape[-1] * dtype.itemsize
            piece = BLOCK // pixel * pixel or pixel
            for place in range(0, size, piece):
                values = take(file, min(piece, size - place)).view(dtype)
                yield PARTS[chosen[0]], values.reshape(-1, shape[-1])
    if file.read(1):
        raise ValueError("more follows than its head says")


def by_part(block: np.ndarray, which: np.ndarray) -> Rows:
    """Yield the rows of a block, of which each is for a part, by part."""
    for index in np.unique(which):
        some = which == index
        yield PARTS[index], block if some.all() else block[some]


def take(file: File, count: int) -> np.ndarray:
    """Return the next `count` bytes (uint8)."""
    # Piece by piece: a head may claim any number of bytes, and they are not there.
    pieces = []
    while count and (piece := file.read(min(count, BLOCK))):
        pieces.append(piece)
        count -= len(piece)
    if count:
        raise EOFError("cut short")
    return np.frombuffer(b"".join(pieces), np.uint8)


@contextlib.contextmanager
def expecting(path: Path, what: str, advice: str = "") -> Iterator[None]:
    """Make a UserError of what a reader of `path` raises where it is not `what`."""
    try:
        yield
    except DAMAGE as error:
        raise UserError(f"{path}: not {what} ({first_line(error)}){advice}") from None
