"""Runs that differ in their seed alone, taken together: how good a setting is, and how surely.

One run is one draw. What is better than something else by less than the spread over seeds is not
known to be better.
"""

from collections.abc import Hashable, Iterable, Sequence

import pandas as pd

from lockstep.pipeline.config import Run
from lockstep.pipeline.kinds import MODELS, Kind
from lockstep.strategies import catalogue

# What only some strategies read.
_ASKED = {name for one in catalogue.ALL for name in one.settings}
ASKED = [name for name in Run.model_fields if name in _ASKED]
VALIDATION = "validation_loss"
# The share that the smallest class has of the test set.
SMALLEST = "smallest"
# What comes out of a run, beside what its task measures.
OUTCOMES = (SMALLEST, "seconds", "peak_memory", "bytes_sent", "model_sha256", VALIDATION)


def outcomes(kind: Kind) -> tuple[str, ...]:
    """Return the columns of the table of runs that come out of a run."""
    return (*kind.figured, kind.rate, *OUTCOMES)


def letters(hashes: Iterable[str]) -> dict[str, str]:
    """Return a letter for each model, by its hash: A to Z, then AA, as a spreadsheet's columns."""
    found: dict[str, str] = {}
    for digest in hashes:
        if digest not in found:
            number = len(found)
            more = "" if number < 26 else chr(ord("A") + number // 26 - 1)
            found[digest] = more + chr(ord("A") + number % 26)
    return found


def listed(names: Sequence[str], between: str = ", ", most: int = 12) -> str:
    """Return names in a line, of many the first and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return between.join(names[:most]) + more


def groups(table: pd.DataFrame, kind: Kind) -> pd.DataFrame:
    """Return a row for each setting: what differs, n, and the mean and deviation of its metrics.

    Args:
        table: that of all runs.
        kind: their task.

    Returns:
        The columns in which settings differ; `runs`, how many there are; `<metric>_mean` and
        `<metric>_sd` (of the sample, n - 1; nothing of a single run) of what the task compares and
        of the loss on the validation part. Where there is one, the settings come in its order, the
        best first; else in that of the table.
    """
    inputs = [n for n in table if n not in ("run", "seed", *outcomes(kind))]
    settings = _filled(table, inputs)
    texts = settings.astype(str)
    differing = [name for name in inputs if texts[name].nunique() > 1]
    metrics = [f"{name}_{model}" for name in kind.compared for model in MODELS]
    metrics = [name for name in (*metrics, VALIDATION) if name in table]
    rows = []
    for _, group in table.groupby([texts[n] for n in inputs], sort=False):
        row = {n: settings[n][group.index[0]] for n in differing} | {"runs": len(group)}
        for name in metrics:
            values = group[name].astype(float)
            row |= {f"{name}_mean": values.mean(), f"{name}_sd": values.std(ddof=1)}
        rows.append(row)
    found = pd.DataFrame(rows)
    if VALIDATION in table:
        found = found.sort_values(f"{VALIDATION}_mean", kind="stable", ignore_index=True)
    return found


def for_person(found: pd.DataFrame, kind: Kind) -> pd.DataFrame:
    """Return groups with "mean ± deviation" in place of two columns."""
    shown = found[[name for name in found if not str(name).endswith(("_mean", "_sd"))]].copy()
    for column in found:
        if str(column).endswith("_mean"):
            name = str(column).removesuffix("_mean")
            metric = name.removesuffix("_last").removesuffix("_averaged")
            shown[name] = [
                kind.text(metric, mean) + ("" if pd.isna(sd) else f" ± {kind.text(metric, sd)}")
                for mean, sd in zip(found[column], found[f"{name}_sd"], strict=True)
            ]
    return shown


def setting_of(found: pd.DataFrame, row: int) -> str:
    """Return what is set in a row of groups, of that in which they differ."""
    names = found.columns[: list(found.columns).index("runs")]
    return ", ".join(f"{n} {found[n].iloc[row]}" for n in names if found[n].iloc[row] != "")


def choice(table: pd.DataFrame, kind: Kind) -> str:
    """Return which setting is best by the validation part, or why none is named; or nothing.

    Runs with the same bits are one draw, whatever says where they were computed.

    Args:
        table: that of all runs.
        kind: their task.
    """
    models = table.drop_duplicates("model_sha256", ignore_index=True)
    found = groups(models, kind)
    if len(found) < 2:
        return ""
    if VALIDATION not in table:
        return (
            "No setting is named best: there is no validation part, and a choice by the test set "
            "makes its numbers too good. Set dataset.validation_fraction."
        )
    names = list(found.columns[: list(found.columns).index("runs")])
    settings = _filled(models, names).astype(str)
    own = (settings == found[names].astype(str).iloc[0]).all(axis=1)
    best = table[table["model_sha256"].isin(models["model_sha256"][own])]
    values = {name: _filled(best, [name])[name].astype(str).unique() for name in _chosen(settings)}
    given = {name: listed([*filter(None, some)], "/", most=6) for name, some in values.items()}
    setting = ", ".join(f"{name} {value}" for name, value in given.items() if value)
    runs = f"{'run' if len(best) == 1 else 'runs'} {listed([*best['run']], most=6)}"
    said = f"Best by the loss on the validation part: {runs}{setting and f' ({setting})'}."
    mean = found[f"{VALIDATION}_mean"]
    same = ["The next one has the same loss."] if mean[0] == mean[1] else []
    return " ".join([said, *same, *cautions(found)])


def cautions(found: pd.DataFrame) -> list[str]:
    """Return how far the choice of the best setting by the validation part can be trusted."""
    said = []
    mean, sd = found[f"{VALIDATION}_mean"], found[f"{VALIDATION}_sd"].fillna(0)
    if (found["runs"] < 2).any():
        said.append("Of a single seed, nobody knows how far that can be trusted.")
    elif 0 < mean[1] - mean[0] < max(sd[0], sd[1]):
        said.append("The next one is closer than they spread over seeds: not known to be worse.")
    if "class_weights" in found.columns[: list(found.columns).index("runs")]:
        said.append("Where classes are of very different sizes, look at balanced accuracy as well.")
    return said


def _filled(table: pd.DataFrame, names: Sequence[Hashable]) -> pd.DataFrame:
    """Return settings, and "" where a run has not set one: pandas would leave out such runs."""
    settings = table[[*names]].astype(object)
    return settings.where(settings.notna(), "")


def _chosen(settings: pd.DataFrame) -> list[Hashable]:
    """Return those of the columns in which runs differ that do not follow from another of them:
    what the strategies of some do not read, and how many snapshots there are by default."""
    follow = {name for name in ASKED if name in settings and len({*settings[name]} - {""}) < 2}
    if {"epochs", "snapshots"} <= {*settings}:
        default = [str(Run(epochs=epochs).snapshots) for epochs in settings["epochs"]]
        if default == [*settings["snapshots"]]:
            follow.add("snapshots")
    return [name for name in settings if name not in follow]
