"""A whole experiment: its configuration, and its runs, which a table and a grid list."""

import io
import itertools
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lockstep.errors import UserError
from lockstep.pipeline.config import Config, Defaults, Run, RunRow, parse, suggestion
from lockstep.pipeline.kinds import TASKS

# Names of files and folders that lie beside the runs' folders in the results.
RESERVED = {"check", "config.json", "figures", "groups.csv", "index.html", "report.html"}
RESERVED |= {"runs.json", "summary.csv"}

MOST_RUNS = 10_000  # of a grid


def folders(config: Config, files: Iterable[Path]) -> dict[str, str]:
    """Return where results, logs and benchmarks of an experiment lie: each has a place of its own.

    Args:
        config: the configuration, whose `pathvars` say otherwise.
        files: those it is from. They name the place, and their folder does for a `config.yaml`.

    Raises:
        UserError: two of them are one folder.
    """
    stems = (file.resolve().parent.name if file.stem == "config" else file.stem for file in files)
    name = re.sub(r"[^A-Za-z0-9_.+-]+", "_", "+".join(stems)).lstrip(".") or "config"
    logs = config.pathvars.get("logs", f"logs/{name}")
    standard = {"results": f"results/{name}", "logs": logs, "benchmarks": f"{logs}/benchmarks"}
    found = standard | config.pathvars
    if len({os.path.realpath(folder) for folder in found.values()}) < len(found):
        said = ", ".join(f"{name} {folder!r}" for name, folder in found.items())
        raise UserError(f"pathvars: expected three folders, not {said}; take others")
    return found


def load(
    values: dict[str, Any], folder: Path = Path(), where: str = "configuration"
) -> tuple[Config, dict[str, Run]]:
    """Check a configuration and its table of runs.

    Args:
        values: the merged content of the configuration files.
        folder: what the path of the table is relative to.
        where: the names of those files, for messages.

    Returns:
        The configuration, and its runs by name in the table's order.

    Raises:
        UserError: the first thing that is wrong, in one line.
    """
    import pandas as pd

    config: Config = parse(Config, values, where)
    table = folder / config.runs
    try:
        lines = table.read_text(encoding="utf-8-sig").splitlines()
        text = "\n".join(line for line in lines if not line.startswith("#"))
        rows = pd.read_csv(io.StringIO(text), sep="\t", dtype=str, keep_default_na=False)
        if not isinstance(rows.index, pd.RangeIndex):  # pandas takes surplus cells for names
            raise ValueError("rows have more cells than the first line")
    except FileNotFoundError:
        raise UserError(
            f"{where}: runs: there is no {table}; write it, a row for each run"
        ) from None
    except (OSError, ValueError) as error:
        why = str(error).strip()
        raise UserError(f"{table}: cannot be read as a tab-separated table: {why}") from None
    if "run" not in rows:
        found = ", ".join(map(repr, rows))
        raise UserError(f"{table}: no column 'run' among {found}; tabs separate columns")
    runs: dict[str, Run] = {}
    taken = {name.casefold(): "is a name that Lockstep uses itself" for name in RESERVED}
    # Before any of them is made: a few long lists make more than memory holds.
    count = len(rows) * math.prod(map(len, config.grid.values()))
    if count > MOST_RUNS:
        raise UserError(
            f"{where}: grid: {count:,} runs are more than {MOST_RUNS:,}; take fewer values"
        )
    listed: list[dict[str, Any]] = []
    for row in rows.to_dict("records"):
        cells: dict[str, Any] = {str(key): cell for key, cell in row.items() if cell != ""}
        listed += (cells | more for more in _points(config.grid, cells, f"{where}: grid"))
    for number, cells in enumerate(listed, start=1):
        name = cells.get("run") or f"row {number}"
        values_of_run = {**config.defaults.model_dump(), **cells}
        parsed = parse(RunRow, values_of_run, f"{table}: {name}")
        key = parsed.run.casefold()  # not every file system tells a folder "A" from "a"
        if key in taken:
            raise UserError(f"{table}: {name}: run: {taken[key]}; give it another name")
        taken[key] = f"is there twice, for {parsed.run!r} above has the same folder"
        runs[parsed.run] = Run(**parsed.model_dump(exclude={"run"}))
        try:
            TASKS[config.dataset.task].check(parsed)
            _check_validation(config, parsed)
        except UserError as error:
            is_standard = config.runs == Config.model_fields["runs"].default
            own = "; or name a table of your own: runs: …" if is_standard else ""
            raise UserError(f"{table}: {name}: {error}{own}") from None
    if not runs:
        raise UserError(f"{table}: there is no run in it; write a row for each")
    return config, runs


def _check_validation(config: Config, run: Run) -> None:
    """Refuse a run that wants a validation part of a known dataset without one; whether a dataset
    of the user's has one, `prepare` finds out."""
    has_none = config.dataset.path is None and not config.dataset.validation_fraction
    if has_none and run.chooses:
        raise UserError(
            f"{run.chooses} needs a validation part; set dataset.validation_fraction, 0.1 say"
        )


def check_given(config: Config, runs: Mapping[str, Run], where: str = "configuration") -> None:
    """Refuse data and weights that are not there, which only a user can bring.

    Args:
        config: the configuration.
        runs: its runs.
        where: the names of its files, for messages.

    Raises:
        UserError: one is missing.
    """
    # Torchvision's are fetched, and those of a run in this table are there when it is done.
    given = {name: Path(run.weights) for name, run in runs.items() if run.weights}
    wanted = {
        f"weights of the run {name}": path
        for name, path in given.items()
        if path == runs[name].weights_file and path.parent.name not in runs
    }
    if config.dataset.path is not None and config.dataset.name != "function":
        wanted["dataset.path"] = Path(config.dataset.path)
    for key, path in wanted.items():
        if not path.exists():
            start = "" if path.is_absolute() else f" in {Path.cwd()}"
            raise UserError(f"{where}: {key}: there is no {path}{start}; say where it is")


def _points(
    grid: dict[str, list[Any]], row: dict[str, Any], where: str
) -> Iterator[dict[str, Any]]:
    """Yield what each point of the grid has, for a row of the table, with the name of its run."""
    for key, values in grid.items():
        if key not in Defaults.model_fields:
            raise UserError(
                f"{where}: {key}: no such key; {suggestion(key, Defaults.model_fields)}"
            )
        if key in row:
            raise UserError(f"{where}: {key}: the table of runs has it as well; take one away")
        if not values:
            raise UserError(f"{where}: {key}: has no values")
    for point in itertools.product(*grid.values()):
        found = dict(zip(grid, point, strict=True))
        words = [f"{key}{re.sub(r'[^A-Za-z0-9_.]+', '_', str(v))}" for key, v in found.items()]
        yield found | ({"run": "-".join([row["run"], *words])} if "run" in row else {})
