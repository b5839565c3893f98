"""Trainings on a terminal: a row each."""

from collections.abc import Iterable, Sequence
from typing import Any

from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lockstep.pipeline.seen import Seen
from lockstep.progress import duration, measured, number

# Cells of a bar: with a name and five numbers it fits a terminal of 80. Where names get fewer cells
# than tell them apart, it is the shorter one.
BAR, SHORT_BAR = 12, 4
# Cells that a name gets at least, and those that tell it from others.
SHORTEST, TELLING = 8, 18
# Cells from which on there is room for how fast it goes beside what is to be said.
WIDE = 100


def fitting(seen: Sequence[Seen], most: int) -> tuple[list[Seen], int]:
    """Return the trainings that fit so many lines, and how many more there are: those that train
    first, then those that did last."""
    order = sorted(seen, key=lambda one: (one.is_over, -one.told.now.get("time", 0.0)))
    most = max(1, most)
    shown = order if len(order) <= most else order[: most - 1]
    return shown, len(order) - len(shown)


def rows(some: Iterable[Seen], width: int) -> Table:
    """Return a table with a row for each training.

    Args:
        some: the trainings.
        width: cells that there are.
    """
    cells = [_row(one, width) for one in some]

    def taken() -> int:
        return sum(max((len(row[at]) for row in cells), default=0) + 2 for at in range(2, 7))

    bar = BAR if width - taken() - BAR - 2 >= TELLING else SHORT_BAR
    if width - taken() - bar - 2 < TELLING:  # then how fast it goes goes too
        cells = [[*row[:5], "", row[6]] for row in cells]
    for row in cells:
        if isinstance(row[1], ProgressBar):
            row[1].width = bar
    table = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
    # The name gives way, as all the rest is short: a bar, then texts.
    room = max(SHORTEST, width - taken() - bar - 2)
    table.add_column(no_wrap=True)
    for justify in ("left", "right", "left", "left", "right", "left"):
        table.add_column(no_wrap=True, justify=justify)
    for row in cells:
        table.add_row(_within(row[0], room), *row[1:])
    return table


def _within(name: str, room: int) -> Text:
    """Return a name in so many cells: of a long one begin and end: those of a grid begin alike."""
    if len(name) > room:
        name = f"{name[: room // 3]}…{name[room // 3 - room + 1 :]}"
    return Text(name)


def _row(one: Seen, width: int) -> list[Any]:
    now, epochs = one.told.now, one.told.epochs
    if not now:
        return [one.name, "", "", "", "", "", Text("starting", "dim")]
    last = epochs[-1] if epochs else {}
    names = measured(last or now)
    own = [name for name in names if not name.startswith("validation_")]
    checked = [name for name in names if name.startswith("validation_")]
    done, total = now.get("step", 0), now.get("steps", 0) or 1
    note = _note(one)
    # Where ranks are missing, that is told rather than the speed.
    fast = f"{_short(now['rate'])}/s" if now.get("rate") and (width >= WIDE or not note[1]) else ""
    return [
        one.name,
        ProgressBar(total=total, completed=done, width=BAR),
        f"{len(epochs)}/{now.get('epochs', 0)}",
        f"loss {number(now.get('loss', last.get('loss')))}",
        f"val. {number(last.get(checked[-1]))}" if checked else _own(own, now, last),
        fast,
        Text(*note),
    ]


def _own(own: list[str], now: dict[str, Any], last: dict[str, Any]) -> str:
    """Return the last metric of the training set, where there is no validation part."""
    if len(own) < 2:
        return ""
    name = own[-1] if len(own[-1]) < 6 else f"{own[-1][:3]}."
    return f"{name} {number(now.get(own[-1], last.get(own[-1])))}"


def _note(one: Seen) -> tuple[str, str]:
    """Return what is to be said at the end of a row, and how it looks; "" is as all else."""
    now = one.told.now
    if one.state == "done":
        seconds = sum(row.get("seconds", 0.0) for row in one.told.epochs)
        return f"done in {duration(seconds)}" if seconds else "done", ""
    if one.state == "stopped":
        return f"stopped: step {now.get('step')}", "yellow"
    if one.state == "ended":
        return f"ended in step {now.get('step', 0) + 1}", "red"
    left = "" if now.get("seconds_left") is None else f"{duration(now['seconds_left'])} left"
    if now.get("ranks", 0) < now.get("of_ranks", 0):
        return f"{left}, {now['ranks']} of {now['of_ranks']} ranks", "yellow"
    return left, ""


def _short(value: float) -> str:
    """Return a number in four letters or so: 812, 4.3k, 12k."""
    if value < 1000:
        return f"{value:.0f}" if value >= 10 else f"{value:.1f}"
    return f"{value / 1000:.1f}k" if value < 10_000 else f"{value / 1000:.0f}k"
