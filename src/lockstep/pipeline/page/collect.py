"""What lies in a folder of results, read for the page: of runs that are done, and of others.

Nothing here fails for what one run's files hold: such a run says what is wrong with it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import Field

from lockstep import progress
from lockstep.errors import UserError, first_line
from lockstep.files import DAMAGE, check_sha256, read_json
from lockstep.pipeline import launch
from lockstep.pipeline.config import parse
from lockstep.pipeline.history import without_times
from lockstep.pipeline.kinds import CLASSIFICATION, MODELS, TASKS, Kind
from lockstep.pipeline.record import (
    Amount,
    Described,
    Metrics,
    Record,
    Training,
    read_metrics,
    read_training,
)
from lockstep.pipeline.seen import look

# What the page calls a run's state. One that is done has its record still to be written.
STATES = {"starting": "waiting", "training": "training", "done": "evaluating"}


class Core(Described):
    """Where `check` found a rank."""

    host: str
    cores: Annotated[int, Field(gt=0)]
    load: Amount


class Spent(Record):
    """What a backend took for a little all-reduce."""

    median_ms: Amount


class Check(Record):
    """What the page wants to know of a launch."""

    ranks: Annotated[list[Core], Field(min_length=1)]
    launcher: str
    mpi: str
    system: str
    backends: dict[str, Spent]


@dataclass(frozen=True)
class Found:
    """A run: as much as there is of it."""

    name: str
    folder: Path
    state: str
    """done, evaluating, training, stopped, waiting or damaged."""
    said: str = ""
    """What is wrong, of a run that is damaged; that nobody trains it, of one that has not stopped
    by itself."""
    training: Training | None = None
    metrics: Metrics | None = None
    history: pd.DataFrame = field(default_factory=pd.DataFrame)
    """A row an epoch, of as many as there are."""
    newest: dict[str, Any] = field(default_factory=dict)
    """The last line of progress.jsonl."""
    predictions: pd.DataFrame | None = None

    @property
    def kind(self) -> Kind:
        """What is learned, as far as it is known."""
        if self.training:
            return TASKS[self.training.task]
        units = {kind.unit: kind for kind in TASKS.values()}
        return units.get(str(self.newest.get("unit")), CLASSIFICATION)

    @property
    def data_sha256(self) -> dict[str, str]:
        """The SHA-256 of the arrays that it learned from and was measured on, by file."""
        return self.training.data_sha256 if self.training else {}

    @property
    def is_open(self) -> bool:
        """Whether there is more to come."""
        return self.state in ("training", "evaluating", "waiting")

    @property
    def results(self) -> pd.DataFrame:
        """The history without times, as `diff` compares it."""
        return without_times(self.history, self.kind.name)


def collect(results: Path, names: Iterable[str] | None) -> list[Found]:
    """Read the runs in `results`.

    Args:
        results: the folder with the runs' folders.
        names: the runs, in their order; None takes those that are there, in the table's order.
    """
    return [_read(results / name) for name in names or names_in(results)]


def names_in(results: Path) -> list[str]:
    """Return the runs that are in a folder: first those of its table, in the order of that."""
    there = {
        path.parent.name
        for file in ("train.json", progress.NAME)
        for path in results.glob(f"*/{file}")
    }
    try:
        with (results / "summary.csv").open(newline="", encoding="utf-8") as file:
            listed = pd.read_csv(file, usecols=["run"], dtype=str, keep_default_na=False)["run"]
    except DAMAGE:
        listed = pd.Series([], dtype=str)
    return [name for name in listed if name in there] + sorted(there - {*listed})


def read_checks(results: Path) -> dict[str, Check]:
    """Return what `check` found of each launch, by its name; without those that are damaged."""
    found = {}
    for path in sorted((results / "check").glob("*.json")):
        try:
            values = read_json(path, "the record of a check", "check again")
            found[path.stem] = parse(Check, values, str(path))
        except UserError:
            continue
    return found


def check_of(found: Found, checks: Mapping[str, Check]) -> Check | None:
    """Return what `check` found of a run's launch, or nothing."""
    return checks.get(launch.world(found.training.configuration)) if found.training else None


def _read(folder: Path) -> Found:
    seen = look(folder.name, folder)
    newest = seen.told.now
    if (folder / "train.json").exists():
        try:
            return _read_trained(folder, newest)
        except (UserError, *DAMAGE) as error:
            said = str(error) if isinstance(error, UserError) else first_line(error)
            return Found(folder.name, folder, "damaged", said)
    state = STATES.get(seen.state, "stopped")
    said = "no longer running" if seen.state == "ended" else ""
    rows = [
        {name: value for name, value in row.items() if isinstance(value, int | float)}
        for row in seen.told.epochs
    ]
    history = pd.DataFrame(rows)
    return Found(folder.name, folder, state, said, history=history, newest=newest)


def _read_trained(folder: Path, newest: dict[str, Any]) -> Found:
    training = read_training(folder)
    path = folder / "history.csv"
    check_sha256(path, training.history_csv_sha256, folder / "train.json", "train again")
    found = Found(folder.name, folder, "evaluating", "", training, None, pd.read_csv(path), newest)
    if not (folder / "metrics.json").exists():
        return found
    metrics = read_metrics(folder, training)
    predictions = None
    if "predictions" in found.kind.tables:
        predictions = _read_predictions(folder / "predictions.csv", found.kind)
    return Found(
        *(folder.name, folder, "done", "", training, metrics, found.history, newest, predictions)
    )


def _read_predictions(path: Path, kind: Kind) -> pd.DataFrame:
    """Return what the models made of each sample, and how sure the last one was of its class.

    Raises:
        UserError: it is another table.
    """
    # Classes have names, and "NA" or "01" is one as well.
    names = dict.fromkeys(("label", *MODELS), str) if kind.classes else {}
    needed = ["sample", *(["label"] if kind.classes else ["output", "target"]), *MODELS]
    table = pd.read_csv(
        path,
        dtype=names,
        keep_default_na=not names,
        usecols=lambda name: name in (*needed, "file") or name.startswith("p_"),
    )
    if missing := [name for name in needed if name not in table]:
        raise UserError(f"{path}: no column {missing[0]}; run `evaluate` again")
    if kind.classes and all(f"p_{name}" in table for name in set(table["last"])):
        sure = np.empty(len(table))
        for name, rows in table.groupby("last").indices.items():
            sure[rows] = table[f"p_{name}"].to_numpy()[rows]
        table = table.assign(sure=sure)
    return table[[name for name in table if not str(name).startswith("p_")]]
