"""progress.jsonl: where a training is, for whoever looks on from another process or host.

The first rank writes it to the folder of the run: a line for each epoch that is over, and one for
the steps that are done, at most once a second. A training writes it and never reads it.
"""

import contextlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lockstep.files import write_text

NAME = "progress.jsonl"
# Seconds between two lines: who looks on sees no more, and a file system of many hosts bears it.
EVERY = 1.0

# What a line says beside what was measured.
ABOUT = (
    *("event", "time", "state", "epoch", "epochs", "step", "steps", "unit", "rate", "lr"),
    *("seconds", "seconds_left", "ranks", "of_ranks", "began", "after"),
)


class Teller:
    """Tells where a training is; on the first rank alone.

    What it cannot write, it leaves: a full disk is no reason to stop.

    Args:
        folder: that of the run.
        epochs: how many there are to be.
        steps: of an epoch.
        batch: the samples of a step.
        unit: what these are, in the plural.
    """

    def __init__(
        self, folder: Path, epochs: int, steps: int, batch: int, unit: str = "samples"
    ) -> None:
        self.path = folder / NAME
        self.epochs, self.steps, self.batch, self.unit = epochs, steps, batch, unit
        self._first, self._began, self._due = 0, 0.0, 0.0
        self._launch: dict[str, Any] = {}
        self._last: dict[str, Any] = {}
        self._epochs = -1

    def is_due(self) -> bool:
        """Return whether it is time for another line."""
        return time.monotonic() > self._due

    def tell(self, step: int, history: Sequence[Mapping[str, float]], **now: Any) -> dict[str, Any]:
        """Add a line, and return what it says.

        Args:
            step: how many are done.
            history: a row for each epoch that is over. With more of them than there were, or at
                first, the file is written anew: it may be of another training.
            now: what else there is to tell.
        """
        self._last = line = self._line(step, now)
        if len(history) == self._epochs:
            self._append(line)
        else:
            self._write(history, line)
        return line

    def end(
        self, state: str, step: int, history: Sequence[Mapping[str, float]], **now: Any
    ) -> None:
        """Tell for the last time: the training is "done", or has "stopped" after a step."""
        row = history[-1] if history and state == "done" else {}
        line = {**self._last, **row, **now, "event": "step", "time": round(time.time(), 3)}
        self._write(history, {**line, "step": step, "state": state, "seconds_left": None})

    def _line(self, step: int, now: dict[str, Any]) -> dict[str, Any]:
        self._due = time.monotonic() + EVERY
        if not self._began:
            self._first, self._began = step, time.monotonic()
            self._launch = {"began": round(time.time(), 3), "after": step}
        done, seconds = step - self._first, time.monotonic() - self._began
        total = self.epochs * self.steps
        line = {
            "event": "step",
            "time": round(time.time(), 3),
            **self._launch,
            **now,
            "epoch": min(step // self.steps + 1, self.epochs),
            "epochs": self.epochs,
            "step": step,
            "steps": total,
            "unit": self.unit,
            "state": "training",
        }
        if done:  # by what this launch has done: another may have been faster
            line["seconds_left"] = round(seconds / done * (total - step), 1)
            line.setdefault("rate", done * self.batch / seconds)
        return line

    def _write(self, history: Sequence[Mapping[str, float]], line: dict[str, Any]) -> None:
        lines = [*({"event": "epoch", **row} for row in history), line]
        with contextlib.suppress(OSError):
            write_text(self.path, "".join(map(_as_line, lines)))
            self._epochs = len(history)

    def _append(self, line: dict[str, Any]) -> None:
        # One write of less than a page to a file that is open for appending: readers see all or
        # nothing of it, and two writers (one that takes over from another) no mixture.
        with contextlib.suppress(OSError), self.path.open("a", encoding="utf-8") as file:
            file.write(_as_line(line))


def _as_line(values: Mapping[str, Any]) -> str:
    """Return values as a line; JSON has no number that is none."""
    told = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }
    return json.dumps(told) + "\n"


def measured(row: Mapping[str, Any]) -> list[str]:
    """Return the names of what was measured in an epoch: the loss, and each metric that the
    training set has; then the same of the validation part."""
    own = [
        name
        for name in row
        if name not in ABOUT
        and not name.startswith("validation_")
        and not name.endswith(("_seconds", "_per_second"))
    ]
    return [*own, *(name for name in map("validation_{}".format, own) if name in row)]


def words(row: Mapping[str, Any], epochs: int, unit: str, step: str = "") -> str:
    """Return a line for a person: an epoch that is over, or one that goes on.

    Args:
        row: what was told of it.
        epochs: how many there are to be.
        unit: what samples are, in the plural.
        step: what to say of the step.
    """
    said = [f"epoch {row['epoch']}/{epochs}", *([step] if step else [])]
    for name in measured(row):
        said.append(f"{name.replace('_', ' ')} {number(row[name])}")
    if rate := row.get("rate") or row.get(f"{unit}_per_second"):
        said.append(f"{rate:,.0f} {unit}/s")
    if (left := row.get("seconds_left")) is not None:
        said.append(f"{duration(left)} left")
    return "  ".join(said)


def number(value: float | None) -> str:
    """Return a measured number for a person; JSON has none for one that is not finite."""
    return "nan" if value is None else f"{value:.4f}" if abs(value) < 1e4 else f"{value:.4g}"


def duration(seconds: float) -> str:
    """Return seconds for a person: 0:07, 4:10, 2:03:00."""
    if not math.isfinite(seconds):
        return "?"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


@dataclass(frozen=True)
class Told:
    """What a training has told: see `Teller`."""

    now: dict[str, Any] = field(default_factory=dict)
    """The newest line."""
    epochs: list[dict[str, Any]] = field(default_factory=list)
    """A row for each epoch that is over."""


def read(folder: Path) -> Told:
    """Return what the training that writes to a folder has told, or an empty Told.

    A last line that is cut short is left away: it will be whole a moment later.
    """
    try:
        text = (folder / NAME).read_text("utf-8", errors="replace")
    except OSError:
        return Told()
    now: dict[str, Any] = {}
    epochs: dict[int, dict[str, Any]] = {}
    for line in text.splitlines():
        try:
            told = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(told, dict):
            continue
        if told.get("event") == "epoch":
            if isinstance(told.get("epoch"), int):
                epochs[told["epoch"]] = told
        else:
            now = told
    return Told(now, [epochs[epoch] for epoch in sorted(epochs)])
