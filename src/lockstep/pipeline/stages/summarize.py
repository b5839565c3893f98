"""summarize: one table of all runs."""

import sys
from pathlib import Path

import pandas as pd

from lockstep.files import atomic, sweep
from lockstep.pipeline.config import Run
from lockstep.pipeline.groups import VALIDATION, choice, for_person, groups
from lockstep.pipeline.kinds import MODELS, TASKS, of_columns
from lockstep.pipeline.record import read_metrics, read_training
from lockstep.strategies import catalogue

COLUMNS = ("model", "strategy", "shards", "ranks", "seed", "epochs")
# These have a column where a run's strategy asks for them, with no value for the others.
_ASKED = {name for one in catalogue.ALL for name in one.settings}
ASKED = [name for name in Run.model_fields if name in _ASKED]
# These have a column where runs differ in them; oversubscribe changes no result.
OTHERS = [name for name in Run.model_fields if name not in (*COLUMNS, *ASKED, "oversubscribe")]


def summarize(results: list[Path], output: Path) -> pd.DataFrame:
    """Write a table with a row for each run, and beside it groups.csv, a row for each setting.

    Args:
        results: the runs' folders, in the order of the rows.
        output: the table to write (CSV).

    Raises:
        UserError: a run's records are missing or damaged, or not of one training.
    """
    sweep(output)
    sweep(output.with_name("groups.csv"))
    table = pd.DataFrame([_row(folder) for folder in results])
    table = table.drop(columns=[name for name in OTHERS if table[name].nunique(dropna=False) == 1])
    table = table.drop(columns=[name for name in ASKED if (table[name] == "").all()])
    kind = of_columns(map(str, table))
    for path, frame in ((output.with_name("groups.csv"), groups(table, kind)), (output, table)):
        with atomic(path) as draft:
            frame.to_csv(draft, index=False)
    return table


def _row(folder: Path) -> dict[str, object]:
    training = read_training(folder)
    metrics = read_metrics(folder, training)
    run, own = training.configuration.model_dump(), catalogue.of(training.configuration).settings
    kind = TASKS[training.task]
    return {
        "run": folder.name,
        "dataset": training.dataset,
        **{name: run[name] for name in COLUMNS[:2]},
        **{name: run[name] if name in own else "" for name in ASKED},
        **{name: run[name] for name in (*COLUMNS[2:], *OTHERS)},
        **{
            f"{name}_{model}": getattr(getattr(metrics, model), name)
            for name in kind.compared
            for model in MODELS
        },
        **({kind.baseline: getattr(metrics.last, kind.baseline)} if kind.baseline else {}),
        "loss": metrics.last.loss,
        **({VALIDATION: metrics.validation.last.loss} if metrics.validation else {}),
        kind.rate: round(training.images_per_second),
        "seconds": round(training.seconds, 2),
        "bytes_sent": sum(training.bytes_sent),
        "model_sha256": training.model_sha256,
    }


def for_terminal(table: Path) -> str:
    """Return a summary as text for a person, with hashes shortened to what tells them apart."""
    frame = pd.read_csv(table, dtype={"run": str}, keep_default_na=False)
    kind = of_columns(map(str, frame))
    settings = groups(frame, kind)
    frame["model_sha256"] = frame["model_sha256"].str[:12]
    text = frame.round(4).to_string(index=False)
    if (settings["runs"] > 1).any():
        text += f"\n\n{for_person(settings, kind).to_string(index=False)}"
    return f"{text}\n{choice(settings)}".rstrip()


def show(results: Path, since: float) -> None:
    """Print the table of runs and where the report is, if they were made since then (Unix time)."""
    table, page = results / "summary.csv", results / "report.html"
    if table.exists() and table.stat().st_mtime > since:
        print(for_terminal(table), file=sys.stderr)
    if page.exists() and page.stat().st_mtime > since:
        print(f"\nThe report: {page}", file=sys.stderr)
