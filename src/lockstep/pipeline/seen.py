"""Trainings as they are seen from another process or host: by the files that they write."""

import time
from dataclasses import dataclass
from pathlib import Path

from lockstep.checkpoint.ask import RECORDS, is_held
from lockstep.progress import Told, read, words

# Seconds without news after which one asks whether anybody trains: a step may take long.
SILENCE = 10.0


@dataclass(frozen=True)
class Seen:
    """A training, as it was seen."""

    name: str
    folder: Path
    told: Told
    state: str
    """ "starting", "training", "done", "stopped", or "ended": it neither trains nor is done."""

    @property
    def is_over(self) -> bool:
        """Whether nothing more comes of it."""
        return self.state in ("done", "stopped", "ended")


def look(name: str, folder: Path) -> Seen:
    """Look at the training that writes to a folder."""
    told = read(folder)
    state = told.now.get("state", "starting")
    if state == "training" and any((folder / record).exists() for record in RECORDS):
        state = "done"
    silent = time.time() - told.now.get("time", 0.0) > SILENCE
    if state == "training" and silent and not is_held(folder / "checkpoints" / "lock"):
        state = "ended"
    return Seen(name, folder, told, state)


def saved(folder: Path) -> int | None:
    """Return the step of the newest checkpoint of the training that wrote to a folder last, if it
    has one."""
    # A training writes about.json when it begins, and checkpoints whole or not at all.
    begun = {file.stat().st_mtime: file.parent for file in folder.glob("checkpoints/*/about.json")}
    if not begun:
        return None
    steps = [file.parent.name for file in begun[max(begun)].glob("step-*/manifest.json")]
    return max((int(name.removeprefix("step-")) for name in steps), default=None)


class Lines:
    """What is said of trainings in lines: once that one goes on from a checkpoint, and of each
    epoch where there is no terminal."""

    def __init__(self) -> None:
        self._said: dict[Path, int] = {}
        self._began: dict[Path, float | None] = {}

    def resumed(self, one: Seen) -> list[str]:
        """Return a line if the training goes on from a checkpoint, once for each launch of it."""
        began, after = one.told.now.get("began"), one.told.now.get("after")
        is_whole = bool(after) and after == one.told.now.get("steps")
        if not after or began == self._began.get(one.folder) or (one.is_over and not is_whole):
            return []
        self._began[one.folder] = began
        if is_whole:
            return [f"{one.name}  was trained already; its results are written again"]
        return [f"{one.name}  goes on after step {after}"]

    def new(self, one: Seen) -> list[str]:
        """Return the lines of the epochs that are over since one was asked last."""
        if not one.told.now:  # it has not begun, and may go on after epochs that were said
            return []
        known = self._said.get(one.folder, 0)
        self._said[one.folder] = len(one.told.epochs)
        found = self.resumed(one)
        for row in one.told.epochs[known:]:
            is_last = row is one.told.epochs[-1]
            left = {"seconds_left": one.told.now.get("seconds_left")} if is_last else {}
            about = one.told.now.get("epochs", 0), one.told.now.get("unit", "samples")
            found.append(f"{one.name}  {words({**row, **left}, *about)}")
        return found

    def skip(self, one: Seen) -> None:
        """Say nothing of what is over already."""
        self._said[one.folder] = len(one.told.epochs)
        self._began[one.folder] = one.told.now.get("began")
