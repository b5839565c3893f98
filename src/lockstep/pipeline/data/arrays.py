"""Inputs and targets on disk: arrays that are memory-mapped and never read whole.

A part of a dataset ("train", "validation" or "test") is a folder of files that the task names:
images and labels, inputs and targets, or tokens. Channels come last, the layout that a CPU's
convolutions are fastest with. All ranks of a host share one copy of them in the page cache.
"""

import csv
import functools
import math
import os
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from lockstep.errors import UserError, first_line
from lockstep.files import DAMAGE
from lockstep.pipeline.kinds import CLASSIFICATION, Kind

# A larger array is read and not mapped: a mapped page is the process's memory, and on some file
# systems one that is touched brings 2 MiB with it. Reading takes 0.6 microseconds a sample more.
MOST_MAPPED = 200 * 2**20
# Neighbours in a file that are read at once where there is a window: so many bytes that a disk is
# fast, and so few samples that a window has many blocks, for files are often sorted by class.
BLOCK, MOST_IN_BLOCK = 2**20, 32


class Rows:
    """The rows of an array that is memory-mapped or in memory, to be copied."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = np.asarray(array)  # whose elements are had faster than a memmap's
        self.block = max(1, min(MOST_IN_BLOCK, BLOCK // max(array[:1].nbytes, 1)))
        """How many neighbours are read at once."""
        self._file: int | None = None
        if isinstance(array, np.memmap) and array.nbytes > MOST_MAPPED:
            self._path = str(array.filename)
            mapping = np.frombuffer(array._mmap, np.uint8)  # type: ignore[attr-defined]
            self._begin = array.ctypes.data - mapping.ctypes.data
            self._file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            weakref.finalize(self, os.close, self._file)
            os.posix_fadvise(self._file, 0, 0, os.POSIX_FADV_RANDOM)

    def read(self, some: np.ndarray | slice) -> np.ndarray:
        """Return a copy of some rows, by their numbers or as a slice."""
        if self._file is None:
            rows = self.array[some]
            return np.array(rows) if isinstance(some, slice) else rows
        numbers = np.arange(len(self.array))[some] if isinstance(some, slice) else some
        rows = np.empty((len(numbers), *self.array.shape[1:]), self.array.dtype)
        bytes_, size = rows.reshape(-1).view(np.uint8).data, self.array[:1].nbytes
        for place, begin in enumerate((self._begin + numbers * self.array.strides[0]).tolist()):
            if os.preadv(self._file, [bytes_[place * size : (place + 1) * size]], begin) != size:
                raise OSError(f"{self._path}: was cut while it was read")
        return rows

    def read_ahead(self, numbers: np.ndarray) -> None:
        """Have the system read these rows, and what is between neighbours, into its page cache."""
        if self._file is not None and len(numbers):
            begins = self._begin + np.sort(numbers) * self.array.strides[0]
            apart = np.diff(begins) > self.block * self.array.strides[0]
            for run in np.split(begins, np.flatnonzero(apart) + 1):
                length = int(run[-1] - run[0]) + self.array[:1].nbytes
                os.posix_fadvise(self._file, int(run[0]), length, os.POSIX_FADV_WILLNEED)


@dataclass(frozen=True)
class Part:
    """The inputs and targets of one part, N x ... each, memory-mapped."""

    inputs: np.ndarray
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.targets)

    @functools.cached_property
    def rows(self) -> tuple[Rows, Rows]:
        """The rows of inputs and targets."""
        return Rows(self.inputs), Rows(self.targets)

    def read(self, some: np.ndarray | slice) -> tuple[np.ndarray, np.ndarray]:
        """Return copies of the inputs and targets of some samples, by ids or as a slice."""
        inputs, targets = self.rows
        return inputs.read(some), targets.read(some)

    @property
    def nbytes(self) -> int:
        """How many bytes there are, at most."""
        return self.inputs.nbytes + self.targets.nbytes


def read_head(file: IO[bytes], size: int) -> tuple[np.dtype, tuple[int, ...]]:
    """Read what an .npy file of `size` bytes holds, and leave `file` at its first element.

    Raises:
        ValueError or another of DAMAGE: it is no whole array of plain numbers, row by row.
    """
    if (version := np.lib.format.read_magic(file)) != (1, 0):
        raise ValueError(f"is of version {version}, expected (1, 0)")
    shape, columns_first, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype.hasobject:
        raise ValueError("is of Python objects")
    if columns_first and len(shape) > 1:
        raise ValueError("is in Fortran's order; save what np.ascontiguousarray makes of it")
    if min(shape, default=0) < 0 or size != file.tell() + math.prod(shape) * dtype.itemsize:
        raise ValueError(f"has {size} bytes, which are not those of {dtype} {shape}")
    return dtype, shape


def open_part(folder: Path, kind: Kind = CLASSIFICATION) -> Part:
    """Map the arrays in `folder` for reading.

    Args:
        folder: a part of a prepared dataset.
        kind: the task that it was prepared for.

    Raises:
        UserError: a file is missing, cut short, or not such an array.
    """
    arrays = []
    for array in kind.arrays:
        path = folder / f"{array.name}.npy"
        try:
            with path.open("rb") as file:
                dtype, shape = read_head(file, path.stat().st_size)
                # No memory can be mapped where there are no bytes: a part may be empty.
                mapped = math.prod(shape) > 0
                arrays.append(
                    np.memmap(path, dtype, "r", file.tell(), shape)
                    if mapped
                    else np.empty(shape, dtype)
                )
        except DAMAGE as error:
            why = first_line(error)
            raise UserError(f"{path}: not a whole array ({why}); run `prepare` again") from None
    fit = [
        found.dtype.name in array.dtypes and found.ndim in array.dimensions
        for found, array in zip(arrays, kind.arrays, strict=True)
    ]
    if not all(fit) or len({len(found) for found in arrays}) > 1:
        what = " and ".join(f"{found.dtype} {found.shape}" for found in arrays)
        raise UserError(f"{folder}: expected {kind.layout}, found {what}; run `prepare` again")
    if len(arrays) == 1:  # of a sequence, each is foretold from those before it
        return Part(arrays[0][:, :-1], arrays[0][:, 1:])
    return Part(*arrays)


def read_files(folder: Path) -> list[str] | None:
    """Return the file of each sample of a part, or None where samples are no files.

    Raises:
        UserError: files.csv cannot be read.
    """
    path = folder / "files.csv"
    if not path.exists():
        return None
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [row["file"] for row in csv.DictReader(file)]
    except (*DAMAGE, csv.Error) as error:
        why = first_line(error)
        raise UserError(f"{path}: not a list of files ({why}); run `prepare` again") from None


class Moments:
    """The mean and the standard deviation of each channel, of pixels that come bit by bit.

    The sums are of integers, so they are exact, and do not depend on how the pixels come.
    """

    def __init__(self, channels: int) -> None:
        self.pixels = 0
        self.total = np.zeros(channels, np.uint64)
        self.squares = np.zeros(channels, np.uint64)

    def add(self, pixels: np.ndarray) -> None:
        """Add some pixels (uint8, ... x C, contiguous)."""
        channels = len(self.total)
        self.pixels += pixels.size // channels
        flat = pixels.reshape(-1)
        # Long rows are added fast; 256 of them, with their squares, stay in the cache.
        width = 1024 * channels
        whole = len(flat) // width * width
        self._add_rows(flat[whole:].reshape(-1, channels))
        for start in range(0, whole, 256 * width):
            self._add_rows(flat[start : min(whole, start + 256 * width)].reshape(-1, width))

    def _add_rows(self, rows: np.ndarray) -> None:
        # At most 1,024 rows: the largest sum, 1,024 x 255 x 255, is far below 2**32.
        squares = np.square(rows, dtype=np.uint16)
        for sums, values in ((self.total, rows), (self.squares, squares)):
            columns = np.add.reduce(values, axis=0, dtype=np.uint32)
            sums += columns.reshape(-1, len(sums)).sum(axis=0, dtype=np.uint64)

    def of_unit(self) -> tuple[list[float], list[float]]:
        """Return the mean and the standard deviation of each channel, of pixels scaled to 0..1."""
        mean = self.total / self.pixels
        deviation = np.sqrt(self.squares / self.pixels - mean**2)
        return (mean / 255).tolist(), (deviation / 255).tolist()


class FloatMoments:
    """The mean and the standard deviation of each channel, of numbers that come block by block.

    Sums are float64. Blocks are joined by their means (Chan, Golub and LeVeque, "Updating formulae
    and a pairwise algorithm for computing sample variances", 1979), so that nothing is lost where
    deviations are small beside means; the result depends on how the blocks were cut.
    """

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.mean = np.zeros(channels)
        self.squares = np.zeros(channels)

    def add(self, block: np.ndarray) -> None:
        """Add some numbers (... x C)."""
        rows = block.reshape(-1, len(self.mean)).astype(np.float64)
        mean = rows.mean(axis=0)
        apart, both = mean - self.mean, self.count + len(rows)
        self.squares += ((rows - mean) ** 2).sum(axis=0) + apart**2 * (
            self.count * len(rows) / both
        )
        self.mean += apart * (len(rows) / both)
        self.count = both

    def of_numbers(self) -> tuple[list[float], list[float]]:
        """Return the mean and the standard deviation of each channel."""
        return self.mean.tolist(), np.sqrt(self.squares / self.count).tolist()
