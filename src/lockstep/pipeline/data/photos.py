"""The user's own images: a folder for each class, a table of files, or images inside of Parquet."""

import collections
import hashlib
import math
import mmap
import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import PIL

from lockstep.distributed.ending import set_death_signal
from lockstep.errors import UserError, say
from lockstep.pipeline.config import Dataset
from lockstep.pipeline.data import table
from lockstep.pipeline.data.folder import images_by_class
from lockstep.pipeline.data.pixels import Look, decode, describe, unlike
from lockstep.pipeline.data.split import PARTS, TRAIN, WORDS, check_groups, split
from lockstep.pipeline.data.stream import (
    BLOCK,
    Decoded,
    Rows,
    Shape,
    by_part,
    of_images,
)

T = TypeVar("T")

# How many of the images that are of no use are named.
MOST_NAMED = 10

Source = bytes | Path

_here: list[np.ndarray] = []
"""In a process that decodes: the blocks that it decodes into (blocks x images x shape)."""


@dataclass
class Problems:
    """What is wrong with images: those of no use, by place, and the kinds of all others.

    Of a kind, there is the number and the name of the first.
    """

    bad: dict[int, str] = field(default_factory=dict)
    kinds: dict[str, tuple[int, str]] = field(default_factory=dict)

    def add(self, kind: str, count: int, name: str) -> None:
        """Count some images of a kind."""
        before, first = self.kinds.get(kind, (0, name))
        self.kinds[kind] = before + count, first


def folder(dataset: Dataset, raw: Path, threads: int) -> Decoded:
    """A folder for each class, below train/, validation/ and test/, or to be split."""
    root = Path(str(dataset.path))
    below = _parts(root)
    found = {index: images_by_class(place) for index, place in below.items()}
    names = list(found[0])
    for index, classes in found.items():
        if odd := sorted(set(names) ^ set(classes)):
            raise UserError(
                f"{root}: class {odd[0]!r} is not in both {below[0].name}/ and {below[index].name}/"
            )
    files, labels, which = list[Path](), list[int](), list[int]()
    for index, classes in found.items():
        for label, some in enumerate(classes.values()):
            files += some
            labels += [label] * len(some)
            which += [index] * len(some)
    return _decoded(
        dataset,
        names,
        np.array(labels),
        np.array(which, np.uint8),
        [part for part in (1, 2) if part not in found],
        lambda: iter(files),
        [str(file.relative_to(root)) for file in files],
        threads,
    )


def _parts(root: Path) -> dict[int, Path]:
    """Return the folder of each part that there is, by its index: the root, where it is split.

    Raises:
        UserError: folders are named like parts, and cannot be those.
    """
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    named: dict[int, list[Path]] = {}
    for path in folders:
        if (part := WORDS.get(path.name.lower())) is not None:
            named.setdefault(part, []).append(path)
    # A class may be called `train`, and has images: below a part there are folders.
    like_parts = len(folders) == sum(map(len, named.values())) and any(
        path.is_dir() for folder in folders for path in folder.iterdir()
    )
    if not like_parts and not (TRAIN in named and len(named) > 1):
        return {TRAIN: root}
    for part, some in named.items():
        if len(some) > 1:
            raise UserError(
                f"{root}: {some[0].name}/ and {some[1].name}/ are both for {PARTS[part]}; expected "
                f"one folder for each part"
            )
    if TRAIN not in named:
        has = " and ".join(f"{path.name}/" for path in folders)
        raise UserError(
            f"{root}: has {has} and no train/; expected train/ beside them, or a folder for each "
            f"class"
        )
    return {part: named[part][0] for part in sorted(named)}


def listed(dataset: Dataset, raw: Path, threads: int) -> Decoded:
    """A table of images: a CSV, or Parquet, with the images in it or their paths."""
    rows = table.read(Path(str(dataset.path)), dataset.group)
    which = np.zeros(len(rows.labels), np.uint8) if rows.which is None else rows.which
    wanted = [part for part in (1, 2) if rows.which is None or not (which == part).any()]
    return _decoded(
        dataset,
        rows.names,
        rows.labels,
        which,
        wanted,
        rows.sources,
        rows.files,
        threads,
        rows.groups,
    )


def _decoded(
    dataset: Dataset,
    names: list[str],
    labels: np.ndarray,
    which: np.ndarray,
    wanted: list[int],
    sources: Callable[[], Iterator[Source]],
    files: list[str],
    threads: int,
    groups: np.ndarray | None = None,
) -> Decoded:
    """Return images that are split, and decoded as they are asked for.

    Args:
        dataset: what is made of them.
        names: of the classes.
        labels: of all images (N).
        which: the part of each (N), an index of PARTS.
        wanted: the parts that are to get their share of those for training.
        sources: gives the images in their order.
        files: what to call them, and to write down of them.
        threads: how many decode them.
        groups: that of each (N).
    """
    where, look = str(dataset.path), Look(dataset.height_width, dataset.resize, dataset.colour)
    kept, skipped = np.ones(len(files), bool), dict[str, str]()
    if dataset.bad == "skip":
        problems = Problems()
        for _ in _blocks(sources(), files, look, None, threads, problems, {}):
            pass
        kept[list(problems.bad)] = False
        skipped = {files[place]: why for place, why in problems.bad.items()}
        for name, why in islice(skipped.items(), MOST_NAMED):
            say(f"skipped: {name}: {why}")
        if len(skipped) > MOST_NAMED:
            say(f"skipped: {len(skipped) - MOST_NAMED} more; the manifest lists them")
    labels, which, files = labels[kept], which[kept].copy(), _some(files, kept)
    groups = None if groups is None else groups[kept]
    free = which == 0
    if wanted and free.any():
        which[free] = split(
            labels[free],
            dataset,
            names,
            where,
            parts=tuple(wanted),
            groups=None if groups is None else groups[free],
        )
    if groups is not None:
        check_groups(groups, which, where)
    sums: dict[Path, str] = {}
    shape = _first_shape(_some(sources(), kept), files, look)

    def rows() -> Rows:
        problems, start = Problems(), 0
        for block in _blocks(_some(sources(), kept), files, look, shape, threads, problems, sums):
            yield from by_part(block, which[start : start + len(block)])
            start += len(block)
        if said := [*_of_no_use(problems.bad, files), *filter(None, [unlike(problems.kinds)])]:
            raise UserError(f"{where}: {'; '.join(said)}")

    columns = {"file": np.array(files), "label": np.array(names)[labels]}
    if groups is not None:
        columns["group"] = groups
    return of_images(
        names,
        labels,
        which,
        dict.fromkeys(PARTS, shape),
        rows(),
        about={"image": look.words(), "pillow": PIL.__version__, "skipped": skipped},
        sums=sums,
        files={
            part: {name: column[which == i].tolist() for name, column in columns.items()}
            for i, part in enumerate(PARTS)
        },
    )


def _some(values: Iterable[T], kept: np.ndarray) -> Any:
    some = (value for value, keep in zip(values, kept, strict=True) if keep)
    return list(some) if isinstance(values, list) else some


def _first_shape(sources: Iterator[Source], files: list[str], look: Look) -> Shape:
    """Return the shape of the first image that is one."""
    for source, name in zip(sources, files, strict=True):
        try:
            return decode(source, look, name).shape
        except (UserError, OSError):
            continue
    return (*(look.size or (1, 1)), 1)


def _blocks(
    sources: Iterator[Source],
    files: list[str],
    look: Look,
    shape: Shape | None,
    processes: int,
    problems: Problems,
    sums: dict[Path, str],
) -> Iterator[np.ndarray]:
    """Yield images in their order, decoded by processes a few blocks ahead.

    One that is of no use, or of another shape, leaves its place black, and is among the problems.

    Args:
        shape: of each image; None looks for problems alone.
        problems: what is found wrong.
        sums: gets the SHA-256 of the files.
    """

    # In one piece of work, some of what a large photo takes, and no more than a block.
    step = max(1, min(64, BLOCK // math.prod(shape or (1 << 16,))))
    ahead = 2 * processes
    waiting: collections.deque[Future] = collections.deque()
    # Pixels come back through memory: of one that is killed while it sends as much through the
    # executor's pipe, the rest would be waited for without end.
    blocks = _shared((ahead + 1, step, *(shape or (0,))))

    done = 0

    def next_done() -> np.ndarray:
        nonlocal done
        place, count, found, digests = waiting.popleft().result()
        problems.bad.update({done + at: why for at, why in found.bad.items()})
        done += count
        for kind, (alike, name) in found.kinds.items():
            problems.add(kind, alike, name)
        sums.update(digests)
        return blocks[place, :count].copy()  # the next piece of work gets the place

    pairs = zip(sources, files, strict=True)
    # Of threads, two would be as fast as one: of a small image Python does half the work.
    forked = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(processes, forked, _begin, (blocks,)) as pool:
        try:
            for place in cycle(range(ahead + 1)):
                if not (some := list(islice(pairs, step))):
                    break
                waiting.append(pool.submit(_decode_some, some, look, shape, place))
                if len(waiting) > ahead:
                    yield next_done()
            while waiting:
                yield next_done()
        except BrokenExecutor:
            raise UserError(
                "a process that decodes images was killed, for want of memory perhaps; run again, "
                "with fewer of them (--threads)"
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _shared(shape: Shape) -> np.ndarray:
    """Return an array of bytes that processes forked from this one share with it."""
    return np.ndarray(shape, np.uint8, mmap.mmap(-1, max(1, math.prod(shape))))


def _decode_some(
    some: list[tuple[Source, str]], look: Look, shape: Shape | None, place: int
) -> tuple[int, int, Problems, dict[Path, str]]:
    images = _here[0][place]
    images[:] = 0
    found, digests = Problems(), dict[Path, str]()
    for at, (image, (source, name)) in enumerate(zip(images, some, strict=False)):
        try:
            content = source.read_bytes() if isinstance(source, Path) else source
            pixels = decode(content, look, name)
        except (UserError, OSError) as error:
            found.bad[at] = str(error).removeprefix(f"{name}: ")
            continue
        if isinstance(source, Path):
            digests[source] = hashlib.sha256(content).hexdigest()
        found.add(describe(pixels), 1, name)
        if pixels.shape == shape:
            image[:] = pixels
    return place, len(some), found, digests


def _begin(blocks: np.ndarray) -> None:
    """Have this process decode into `blocks`, and end when the one that started it has, however
    that was ended."""
    _here[:] = [blocks]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's, which ends this one
    set_death_signal(signal.SIGKILL)


def _of_no_use(bad: dict[int, str], files: list[str]) -> list[str]:
    """Return what to do about files that are no images, if there are any."""
    if not bad:
        return []
    some = "; ".join(f"{files[at]}: {why}" for at, why in islice(bad.items(), MOST_NAMED))
    more = f"; and {len(bad) - MOST_NAMED} more" if len(bad) > MOST_NAMED else ""
    return [
        f"{len(bad)} of {len(files)} images are of no use: {some}{more}; mend or remove them, or "
        f"set dataset.bad to skip"
    ]
