"""A run's snapshots: which files they are, and that they are of one model; no torch."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from lockstep.errors import UserError
from lockstep.files import check_sha256
from lockstep.pipeline.record import Training
from lockstep.strategies import catalogue

A = TypeVar("A")
T = TypeVar("T", bound=Mapping[str, Any])


def find_snapshots(results: Path, training: Training) -> list[Path]:
    """Return the paths of a run's snapshots in the order in which they were taken.

    Raises:
        UserError: one is missing, or is another one than was written, or there is one more.
    """
    folder, record = results / "snapshots", results / "train.json"
    # epoch-10000 comes after epoch-9999.
    names = sorted(training.snapshots, key=lambda name: (len(name), name))
    paths = [folder / name for name in names]
    if not paths:
        raise UserError(f"{record}: there is no snapshot in it; train again")
    run = training.configuration
    if catalogue.of(run).one_shot and len(paths) != run.shards:
        raise UserError(
            f"{record}: {len(paths)} replicas of {run.shards} shards are in it; train again"
        )
    for path in sorted(folder.glob("*.safetensors")):
        if path not in paths:
            raise UserError(f"{path}: no snapshot of the run in {record}; take it away")
    for path in paths:
        check_sha256(path, training.snapshots[path.name], record, "train again")
    return paths


def alike(paths: list[Path], read: Callable[[Path], T]) -> Iterator[T]:
    """Yield what `read` gives of files, all of the same keys, shapes and types.

    Raises:
        UserError: one is not of those of the first.
    """
    first: T | None = None
    for path in paths:
        found = read(path)
        first = first or found
        odd = sorted(set(first) ^ set(found))
        if odd:
            raise UserError(f"{path}: key {odd[0]!r} is not in both it and {paths[0]}")
        for name, value in found.items():
            kinds = [f"{t.dtype} {tuple(t.shape)}" for t in (value, first[name])]
            if kinds[0] != kinds[1]:
                raise UserError(f"{path}: key {name!r} is {kinds[0]}, and {kinds[1]} in {paths[0]}")
        yield found


def mean(
    states: Iterable[Mapping[str, A]], wide: Callable[[A], A | None]
) -> tuple[Mapping[str, A], dict[str, Any]]:
    """Return the last of several states, and the means of what is floating-point in them.

    Args:
        states: arrays, or tensors, by name.
        wide: gives one in float64, in which they are summed in their order, or None of one that is
            not floating-point.
    """
    last: Mapping[str, A] = {}
    sums: dict[str, Any] = {}
    count = 0
    for last in states:
        count += 1
        for name, value in last.items():
            if (exact := wide(value)) is not None:
                sums[name] = sums[name] + exact if name in sums else exact
    return last, {name: total / count for name, total in sums.items()}
