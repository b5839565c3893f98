"""report: figures and tables for Snakemake's report.

It reads what other stages wrote and loads no torch, so that it also runs where nothing can train.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from lockstep.errors import UserError, first_line
from lockstep.files import check_sha256, read_json, sweep, write_text
from lockstep.pipeline import launch
from lockstep.pipeline.kinds import TASKS, of_columns
from lockstep.pipeline.record import Training, read_metrics, read_training
from lockstep.pipeline.report import (
    communication,
    comparison,
    curves,
    machine,
    matrices,
    runs,
    scaling,
    style,
)


def draw_runs(results: Path, names: Sequence[str]) -> None:
    """Draw the figures of runs, each into the folder `figures` in its own.

    Where its time on more ranks can be predicted, that is drawn as well.

    Args:
        results: the folder with the runs' folders, and with what `check` wrote.
        names: the runs.

    Raises:
        UserError: a file is missing or damaged.
    """
    for name in names:
        folder, training = results / name, read_training(results / name)
        run, output = training.configuration, results / name / "figures"
        draw_run(folder, Path(training.partition).with_name("summary.csv"), output)
        if launch.predicted({name: run}):
            draw_prediction(folder, results / "check" / f"{launch.world(run)}.json", output)


def draw_table(results: Path, checks: Sequence[Path]) -> None:
    """Draw the table of all runs, and launches: into the folder `figures` in `results`.

    Args:
        results: the folder with summary.csv.
        checks: the JSON files of `check`, each with its table beside it.

    Raises:
        UserError: a file is missing or damaged.
    """
    draw_summary(results / "summary.csv", checks, results / "figures")
    for check in checks:
        if len(_read_check(check)["ranks"]) > 1:
            draw_launch(check, results / "figures" / check.stem)


def draw_run(results: Path, partition: Path, output: Path) -> None:
    """Draw curves.svg and time.svg of a run, and what its task has besides.

    Args:
        results: the run's folder, with what `train` and `evaluate` wrote.
        partition: the summary.csv of its partition.
        output: the folder that gets the figures.

    Raises:
        UserError: a file is missing or damaged.
    """
    training = read_training(results)
    found = read_metrics(results, training)
    with _drawing(results, "train again"):
        run, metrics = training.configuration, found.model_dump()
        kind, history = TASKS[training.task], _read_history(results, training)
        steps = training.steps / len(history)
        figures = {
            "curves": curves.draw_curves(results.name, run, history, metrics, kind),
            "time": curves.draw_time(
                results.name, run, history, steps, kind.unit, training.segments
            ),
        }
        if "confusion" in kind.figures:
            # Classes have names, and "NA" or "01" is one as well.
            confusion = pd.read_csv(
                results / "confusion.csv",
                dtype={"label": str, "predicted": str, "model": str},
                keep_default_na=False,
            )
            last = metrics["last"]
            figures["confusion"] = matrices.draw_confusion(results.name, confusion, last)
    with _drawing(partition, "run `partition` again"):
        if "shards" in kind.figures:
            classes, counts = list(metrics["last"]["per_class"]), pd.read_csv(partition)
            figures["shards"] = matrices.draw_shards(results.name, run, counts, classes)
        _save(output, figures)


def draw_summary(summary: Path, checks: Sequence[Path], output: Path) -> None:
    """Draw runs.html, machine.html, and what the task compares: accuracy.svg, of classes.

    Args:
        summary: the table of all runs.
        checks: the JSON files of `check`.
        output: the folder that gets the figures and pages.

    Raises:
        UserError: a file is missing or damaged.
    """
    with _drawing(summary, "summarize again"):
        # No reduction is "" and no number; the loss of a run that diverged is no number either.
        table = pd.read_csv(
            summary, dtype={"run": str}, keep_default_na=False, na_values={"loss": [""]}
        )
        kind = of_columns(map(str, table))
        pages = {"runs": runs.page_of_runs(table, kind)}
        figures = {kind.main: comparison.draw_comparison(table, kind)}
    found = {path.stem: _read_check(path) for path in checks}
    with _drawing(", ".join(map(str, checks)), "check again"):
        pages["machine"] = machine.page_of_machine(found)
        _save(output, figures, pages)


def draw_launch(check: Path, output: Path) -> None:
    """Draw communication.html, latency.svg and bandwidth.svg of a launch.

    Args:
        check: the JSON file of `check`, which has its table beside it.
        output: the folder that gets the figures and the page.

    Raises:
        UserError: a file is missing, damaged, or that of a launch with one rank.
    """
    record = _read_check(check)
    with _drawing(check, "check again"):
        table = _read_times(check)
        pages = {"communication": communication.page_of_communication(check.stem, record, table)}
        figures = {
            "latency": communication.draw_latency(check.stem, record, table),
            "bandwidth": communication.draw_bandwidth(check.stem, record, table),
        }
        _save(output, figures, pages)


def draw_prediction(results: Path, check: Path, output: Path) -> None:
    """Draw scaling.svg: how fast a run would be on more ranks.

    Args:
        results: the run's folder, with what `train` wrote.
        check: the JSON file of `check` of the run's launch, which has its table beside it.
        output: the folder that gets the figure.

    Raises:
        UserError: a file is missing, damaged, or that of a launch with one rank.
    """
    training = read_training(results)
    record = _read_check(check)
    with _drawing(f"{results}, {check}", "train or check again"):
        history = _read_history(results, training)
        times, unit = _read_times(check), TASKS[training.task].unit
        figure = scaling.draw_scaling(results.name, training, history, record, times, unit)
        _save(output, {"scaling": figure})


@contextlib.contextmanager
def _drawing(what: object, do: str) -> Iterator[None]:
    """Have whatever goes wrong be said in one line: the files are all that it can be for.

    Those without a SHA-256 in another file may hold anything, and so may what it does to a figure.
    """
    try:
        yield
    except (UserError, OSError):  # they say which file, and what is wrong
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"{what}: cannot be drawn ({why}); {do}") from None


def _save(
    output: Path, figures: Mapping[str, Figure], pages: Mapping[str, str] | None = None
) -> None:
    """Write figures and pages by name to the folder `output`."""
    for name, page in (pages or {}).items():
        sweep(output / f"{name}.html")
        write_text(output / f"{name}.html", page)
    for name, figure in figures.items():
        sweep(output / f"{name}.svg")
        style.save(figure, output / f"{name}.svg")


def _read_history(results: Path, training: Training) -> pd.DataFrame:
    path = results / "history.csv"
    check_sha256(path, training.history_csv_sha256, results / "train.json", "train again")
    return pd.read_csv(path)


def _read_check(path: Path) -> dict[str, Any]:
    return read_json(path, "the record of a check", "check again")


def _read_times(path: Path) -> pd.DataFrame:
    """Return the table beside a check's record."""
    path = path.with_suffix(".csv")
    if not path.exists():
        raise UserError(f"{path}: is not there, beside the record of a check; check again")
    with _drawing(path, "check again"):
        table = pd.read_csv(path)
    if table.empty:
        raise UserError(f"{path}: nothing is in it to be drawn: one rank has no communication")
    return table
