"""summarize: one table of all runs."""

import io
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lockstep.files import atomic, sweep
from lockstep.pipeline.config import PLACE, Run
from lockstep.pipeline.groups import (
    ASKED,
    BALANCED,
    VALIDATION,
    are_uneven,
    choice,
    for_person,
    groups,
    letters,
    outcomes,
    quality,
    warnings,
)
from lockstep.pipeline.kinds import TASKS, Kind, of_columns
from lockstep.pipeline.record import read_metrics, read_training
from lockstep.strategies import catalogue

COLUMNS = ("model", "strategy", "shards", "ranks", "seed", "epochs")
# Cells of the narrowest terminal, less what some prompts and logs put before a line.
WIDTH = 78
# Columns that go, the first one first, where names of runs leave no room for all.
SPARED = ("sent", "peak memory", "averaged")
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
        **quality(metrics, kind),
        kind.rate: _rounded(training.images_per_second),
        "seconds": round(training.seconds, 2),
        "peak_memory": training.peak_memory,
        "bytes_sent": sum(training.bytes_sent),
        "model_sha256": training.model_sha256,
    }


def _rounded(rate: float) -> float:
    """Return a speed to three digits, or as many as there are before the point."""
    return round(rate) if rate >= 100 else float(f"{rate:.3g}")


def for_terminal(table: Path) -> str:
    """Return a summary as text for a person, no line of it longer than WIDTH."""
    frame = pd.read_csv(table, dtype={"run": str}, keep_default_na=False)
    kind = of_columns(map(str, frame))
    metric, bits = kind.main, _bits(frame, kind)

    def measured(name: str, model: str) -> list[str]:
        return [kind.text(name, value) for value in frame[f"{name}_{model}"]]

    told = pd.DataFrame(
        {
            "run": frame["run"],
            **({"same bits": bits} if any(bits) else {}),
            kind.title(metric): measured(metric, "last"),
            **({"balanced": measured(BALANCED, "last")} if are_uneven(frame).any() else {}),
            "averaged": measured(metric, "averaged"),
            f"{kind.unit}/s": [
                f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}" for rate in frame[kind.rate]
            ],
            "peak memory": [_megabytes(most) for most in frame["peak_memory"]],
            "sent": [_megabytes(sent) for sent in frame["bytes_sent"]],
        }
    )
    for name in SPARED:
        if _width(told) > WIDTH:
            told = told.drop(columns=name)
    settings = groups(frame, kind)
    parts = [as_text(told)]
    if (settings["runs"] > 1).any():
        kept = [n for n in settings if not str(n).endswith(("_mean", "_sd"))]
        kept += [n for n in settings if str(n).startswith((metric, VALIDATION))]
        parts.append(as_text(for_person(settings[kept], kind)))
    parts += [_wrapped(said) for said in (*warnings(frame, kind), choice(frame, kind)) if said]
    return "\n\n".join(parts)


def _bits(frame: pd.DataFrame, kind: Kind) -> list[str]:
    """Return a letter for the model of each run that is to be compared with another: one that has
    the same, or that differs from it in where it was computed alone."""
    letter = letters(frame["model_sha256"])
    inputs = [name for name in frame if name not in ("run", *PLACE, *outcomes(kind))]
    alike = frame.groupby([frame[name].astype(str) for name in inputs])["run"].transform("size")
    same = frame.groupby("model_sha256")["run"].transform("size")
    compared = (alike > 1) | (same > 1)
    return [
        letter[digest] if is_compared else ""
        for digest, is_compared in zip(frame["model_sha256"], compared, strict=True)
    ]


def _wrapped(text: str) -> str:
    """Return sentences in lines that break between words alone: names have hyphens in them."""
    return textwrap.fill(text, WIDTH, break_on_hyphens=False)


def _width(frame: pd.DataFrame) -> int:
    """Return the cells of a table that has no line broken."""
    return sum(max(map(len, map(str, [name, *frame[name]]))) + 2 for name in frame) - 2


def as_text(frame: pd.DataFrame) -> str:
    """Return a table as text: numbers at the right, and what is too long in several lines."""
    if (over := _width(frame) - WIDTH) > 0:  # the longest texts give way
        widths = {name: frame[name].map(lambda value: len(str(value))).max() for name in frame}
        longest = max(frame, key=lambda name: widths[name])
        room = max(widths[longest] - over, 1)
        frame = frame.assign(**{str(longest): [_broken(str(v), room) for v in frame[longest]]})
    shown = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for at, name in enumerate(frame):
        justify: Any = "right" if at and frame[name].map(_is_number).all() else "left"
        shown.add_column(str(name).replace("_", " "), justify=justify, overflow="fold")
    for row in frame.itertuples(index=False):
        shown.add_row(*(Text(str(value)) for value in row))
    console = Console(width=WIDTH, file=io.StringIO(), color_system=None)
    console.print(shown)
    return "\n".join(map(str.rstrip, console.file.getvalue().splitlines()))  # type: ignore[attr-defined]


def _broken(text: str, room: int) -> str:
    """Return a text in lines of so many cells, each after a hyphen or the like if it can be."""
    lines = [""]
    for part in re.split(r"(?<=[-_ ,/])", text):
        if lines[-1] and len(lines[-1] + part) > room:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _is_number(value: object) -> bool:
    return str(value)[:1].isdigit()


def _megabytes(count: object) -> str:
    return f"{float(str(count)) / 1e6:,.0f} MB" if count not in ("", None) else ""


def show(results: Path, since: float) -> None:
    """Print the table of runs, and where page and report are, if they were made since then (Unix
    time)."""
    table = results / "summary.csv"
    if table.exists() and table.stat().st_mtime > since:
        print(for_terminal(table), file=sys.stderr)
    for what, name in (("page of results", "index.html"), ("report", "report.html")):
        page = results / name
        if page.exists() and page.stat().st_mtime > since:
            print(f"The {what}: {page}", file=sys.stderr)
