"""diff: what differs between two runs, and from which epoch on their results do."""

from pathlib import Path

import pandas as pd

from lockstep.errors import UserError, first_line
from lockstep.files import DAMAGE
from lockstep.pipeline import differences
from lockstep.pipeline.history import without_times
from lockstep.pipeline.record import read_training


def diff(one: Path, other: Path) -> bool:
    """Print what two runs have not alike: what was asked for, with what, and what came of it.

    Args:
        one: the folder of a run.
        other: that of another.

    Returns:
        Whether both have the same bits.

    Raises:
        UserError: a record is missing or damaged.
    """
    first, second = read_training(one), read_training(other)
    causes, code = differences.causes(first, second), differences.code(first, second)
    if causes:
        print(f"{'':15}{one} | {other}")
    for title, name, a, b in causes:
        print(f"{title:15}{name}: {a} | {b}")
    if code:
        print(f"{'code':15}{code}")
    if not causes and not code:
        print("both were trained from the same, in the same way")
    same = differences.results(first, second)
    for name, equal in same.items():
        print(f"{'result':15}{name}: {'the same bits' if equal else 'different'}")
    if not all(same.values()):
        histories = (_history(folder, run.task) for folder, run in ((one, first), (other, second)))
        print(f"{'result':15}history: {differences.begins(*histories)}")
    return all(same.values())


def _history(folder: Path, task: str) -> pd.DataFrame:
    path = folder / "history.csv"
    try:
        history = pd.read_csv(path)
    except DAMAGE as error:
        raise UserError(f"{path}: not a table ({first_line(error)}); train again") from None
    return without_times(history, task)
