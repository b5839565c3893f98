"""diff: what differs between two runs, and from which epoch on their results do."""

from pathlib import Path
from typing import Any

import pandas as pd

from lockstep import provenance
from lockstep.errors import UserError, first_line, in_words
from lockstep.files import DAMAGE
from lockstep.pipeline.record import Training, read_training
from lockstep.pipeline.results import without_times
from lockstep.pipeline.stages.reproduce import RESULTS, circumstances


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
    found = [
        (title, provenance.differences(of(first), of(second)))
        for title, of in (
            ("configuration", lambda training: training.configuration.model_dump()),
            ("data", _data),
            ("circumstances", circumstances),
        )
    ]
    names = provenance.other_code(first.code, second.code)
    for title, pairs in found:
        for name, (a, b) in pairs.items():
            print(f"{title:15}{name}: {in_words(a)} | {in_words(b)}")
    if names:
        print(f"{'code':15}{names}")
    if not any(pairs for _, pairs in found) and not names:
        print("both were trained from the same, in the same way")
    same = [getattr(first, key) == getattr(second, key) for key in RESULTS.values()]
    for name, equal in zip(RESULTS, same, strict=True):
        print(f"{'result':15}{name}: {'the same bits' if equal else 'different'}")
    if not all(same):
        histories = (_history(folder, run.task) for folder, run in ((one, first), (other, second)))
        print(f"{'result':15}{_where(*histories)}")
    return all(same)


def _data(training: Training) -> dict[str, Any]:
    return {
        "dataset": training.dataset,
        "classes": training.classes,
        "shape": training.shape,
        "shards": training.partition_sha256,
        **training.data_sha256,
    }


def _where(first: pd.DataFrame, second: pd.DataFrame) -> str:
    """Return from which epoch on two histories differ, and in what first."""
    columns = [name for name in first if name in second]
    for row in range(min(len(first), len(second))):
        for name in columns:
            a, b = first[name][row], second[name][row]
            if a != b and not (pd.isna(a) and pd.isna(b)):
                return f"history: from epoch {row + 1} on: {name} is {a} | {b}"
    if len(first) != len(second):
        return f"history: alike as far as both go: {len(first)} and {len(second)} epochs"
    return "history: the same in every epoch"


def _history(folder: Path, task: str) -> pd.DataFrame:
    path = folder / "history.csv"
    try:
        history = pd.read_csv(path)
    except DAMAGE as error:
        raise UserError(f"{path}: not a table ({first_line(error)}); train again") from None
    return without_times(history, task)
