"""runs.json: which runs a workflow is to train, for whoever looks on from another process or host.

It is in the folder of the results from the beginning, and the workflow holds a lock on it: so one
sees what has not begun yet, and whether it still may.
"""

import contextlib
import fcntl
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from lockstep.checkpoint.ask import is_held

NAME = "runs.json"


@dataclass(frozen=True)
class Planned:
    """The runs of a workflow."""

    folders: list[Path]
    goes_on: bool
    """Whether the workflow runs, or may: not every file system knows."""


def announce(results: Path, names: Iterable[str]) -> IO[str] | None:
    """Write runs.json, and return it: the lock is held until it is closed, or the process ends.

    Where it cannot be written, that is no reason to stop.
    """
    with contextlib.suppress(OSError):
        results.mkdir(parents=True, exist_ok=True)
        file = (results / NAME).open("a+", encoding="utf-8")
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_SH)  # two workflows may make parts of one experiment
        file.truncate(0)
        json.dump([*names], file)
        file.flush()
        return file
    return None


def read(place: Path) -> Planned:
    """Return the runs of all workflows whose results lie in a folder, or below it."""
    folders: list[Path] = []
    goes_on = False
    for file in sorted(place.glob(f"**/{NAME}")):
        try:
            names = json.loads(file.read_text("utf-8"))
            folders += [file.parent / name for name in names]
        except (OSError, ValueError, TypeError):  # a moment later it is whole
            continue
        goes_on = goes_on or is_held(file)
    return Planned(folders, goes_on)
