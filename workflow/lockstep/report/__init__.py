"""report: figures and tables for Snakemake's report.

It reads what other stages wrote and loads no torch, so that it also runs where nothing can train.
"""

import json
from pathlib import Path

import pandas as pd

from lockstep.errors import UserError
from lockstep.files import write_text
from lockstep.report import (
    communication,
    comparison,
    curves,
    machine,
    matrices,
    runs,
    scaling,
    style,
)


def draw_run(results: Path, partition: Path, output: Path) -> None:
    """Draw curves.svg, confusion.svg, shards.svg and time.svg of a run.

    Args:
        results: the run's folder, with what `train` and `evaluate` wrote.
        partition: the summary.csv of its partition.
        output: the folder that gets the figures.

    Raises:
        UserError: a file is missing or damaged.
    """
    try:
        train = _read_json(results / "train.json")
        metrics = _read_json(results / "metrics.json")
        history = pd.read_csv(results / "history.csv")
        # Classes have names, and "NA" or "01" is one as well.
        confusion = pd.read_csv(
            results / "confusion.csv",
            dtype={"label": str, "predicted": str, "model": str},
            keep_default_na=False,
        )
        counts = pd.read_csv(partition)
        run = train["configuration"]
        classes = list(metrics["last"]["per_class"])
        drawn = {
            "curves": curves.draw_curves(results.name, run, history, metrics),
            "time": curves.draw_time(results.name, run, history, train["steps"] / run["epochs"]),
            "confusion": matrices.draw_confusion(results.name, confusion, metrics["last"]),
            "shards": matrices.draw_shards(results.name, run, counts, classes),
        }
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{results}: its records are not whole ({_say(error)}); train again"
        ) from error
    for name, figure in drawn.items():
        style.save(figure, output / f"{name}.svg")


def draw_summary(summary: Path, checks: list[Path], output: Path) -> None:
    """Draw runs.html, accuracy.svg and machine.html.

    Args:
        summary: the table of all runs.
        checks: the JSON files of `check`.
        output: the folder that gets the figures and pages.

    Raises:
        UserError: a file is missing or damaged.
    """
    try:
        # No reduction is "" and no number; the loss of a run that diverged is no number either.
        table = pd.read_csv(
            summary, dtype={"run": str}, keep_default_na=False, na_values={"loss": [""]}
        )
        found = {path.stem: _read_json(path) for path in checks}
        pages = {"runs": runs.page_of_runs(table), "machine": machine.page_of_machine(found)}
        figure = comparison.draw_accuracy(table)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{summary}: cannot be drawn ({_say(error)}); summarize again") from error
    for name, page in pages.items():
        write_text(output / f"{name}.html", page)
    style.save(figure, output / "accuracy.svg")


def draw_launch(check: Path, output: Path) -> None:
    """Draw communication.html, latency.svg and bandwidth.svg of a launch.

    Args:
        check: the JSON file of `check`, which has its table beside it.
        output: the folder that gets the figures and the page.

    Raises:
        UserError: a file is missing, damaged, or that of a launch with one rank.
    """
    try:
        record, table = _read_check(check)
        page = communication.page_of_communication(check.stem, record, table)
        figures = {
            "latency": communication.draw_latency(check.stem, record, table),
            "bandwidth": communication.draw_bandwidth(check.stem, record, table),
        }
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{check}: cannot be drawn ({_say(error)}); check again") from None
    write_text(output / "communication.html", page)
    for name, figure in figures.items():
        style.save(figure, output / f"{name}.svg")


def draw_prediction(results: Path, check: Path, output: Path) -> None:
    """Draw scaling.svg: how fast a run would be on more ranks.

    Args:
        results: the run's folder, with what `train` wrote.
        check: the JSON file of `check` of the run's launch, which has its table beside it.
        output: the folder that gets the figure.

    Raises:
        UserError: a file is missing, damaged, or that of a launch with one rank.
    """
    try:
        train = _read_json(results / "train.json")
        history = pd.read_csv(results / "history.csv")
        figure = scaling.draw_scaling(results.name, train, history, *_read_check(check))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{results}, {check}: no prediction from them ({_say(error)}); train or check again"
        ) from None
    style.save(figure, output / "scaling.svg")


def _read_check(path: Path) -> tuple[dict, pd.DataFrame]:
    table = pd.read_csv(path.with_suffix(".csv"))
    if table.empty:
        raise ValueError("one rank has no communication")
    return _read_json(path), table


def _read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def _say(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"  # the repr of an OSError does not name the file
