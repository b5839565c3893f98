"""Runs that differ in their seed alone, taken together: how good a setting is, and how surely.

One run is one draw. What is better than something else by less than the spread over seeds is not
known to be better.
"""

from collections.abc import Iterable

import pandas as pd

from lockstep.pipeline.kinds import MODELS, Kind

VALIDATION = "validation_loss"
# What comes out of a run, beside what its task measures.
OUTCOMES = ("seconds", "peak_memory", "bytes_sent", "model_sha256", VALIDATION)


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
    # What a run has not set is a value too, and pandas would leave out such runs.
    settings = table[inputs].astype(object).where(table[inputs].notna(), "")
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


def choice(found: pd.DataFrame) -> str:
    """Return which setting is best by the validation part, or why none is named; or nothing."""
    if len(found) < 2:
        return ""
    if f"{VALIDATION}_mean" not in found:
        return (
            "No setting is named best: there is no validation part, and a choice by the test set "
            "makes its numbers too good. Set dataset.validation_fraction."
        )
    best = f"Best by the loss on the validation part: {setting_of(found, 0)}."
    mean = found[f"{VALIDATION}_mean"]
    same = ["The next one has the same loss."] if mean[0] == mean[1] else []
    return " ".join([best, *same, *cautions(found)])


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
