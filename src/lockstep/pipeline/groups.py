"""Runs that differ in their seed alone, taken together: how good a setting is, and how surely.

One run is one draw. What is better than something else by less than the spread over seeds is not
known to be better.
"""

from collections.abc import Hashable, Iterable, Sequence

import pandas as pd

from lockstep.pipeline.config import PLACE, Run
from lockstep.pipeline.kinds import MODELS, Kind
from lockstep.pipeline.record import Metrics
from lockstep.strategies import catalogue

# What only some strategies read.
_ASKED = {name for one in catalogue.ALL for name in one.settings}
ASKED = [name for name in Run.model_fields if name in _ASKED]
VALIDATION = "validation_loss"
# The share that the smallest class has of the test set.
SMALLEST = "smallest"
# The balanced accuracy of who always says one class.
CHANCE = "chance"
BALANCED = "balanced_accuracy"
# How many times as large as the smallest class the largest one may be, for accuracy to tell all.
UNEVEN = 2
# What comes out of a run, beside what its task measures.
OUTCOMES = (SMALLEST, CHANCE, "seconds", "peak_memory", "bytes_sent", "model_sha256", VALIDATION)
# The text of a setting that a run has not; "" is one that its strategy does not read.
NONE = "none"
# In what runs differ that say where they were computed, and with what, and are not to be chosen by.
NO_CHOICE = {*PLACE, "strategy", "reduction"}


def outcomes(kind: Kind) -> tuple[str, ...]:
    """Return the columns of the table of runs that come out of a run."""
    return (*kind.figured, kind.rate, *OUTCOMES, validated(kind))


def validated(kind: Kind) -> str:
    """Return the column of the task's main metric on the validation part."""
    return f"validation_{kind.main}"


def quality(metrics: Metrics, kind: Kind) -> dict[str, object]:
    """Return what the table of runs has of how good a run's models are."""
    last, there = metrics.last, metrics.validation
    each = [one.samples for one in (last.per_class or {}).values()]
    return {
        **{
            f"{name}_{model}": getattr(getattr(metrics, model), name)
            for name in kind.compared
            for model in MODELS
        },
        **({kind.baseline: getattr(last, kind.baseline)} if kind.baseline else {}),
        **({SMALLEST: min(each) / sum(each), CHANCE: 1 / sum(map(bool, each))} if each else {}),
        "loss": last.loss,
        **({VALIDATION: there.last.loss} if there else {}),
        **({validated(kind): getattr(there.last, kind.main)} if there else {}),
    }


def are_uneven(table: pd.DataFrame) -> pd.Series:
    """Return of each run whether classes of its test set are of very different sizes."""
    if SMALLEST not in table or "majority" not in table:
        return pd.Series(False, index=table.index)
    return table["majority"] > UNEVEN * table[SMALLEST]


def at_chance(table: pd.DataFrame, kind: Kind) -> pd.Series:
    """Return of each run whether its last model is no better than always the largest class: by
    balanced accuracy where classes are of very different sizes."""
    if kind.baseline not in table:
        return pd.Series(False, index=table.index)
    least = 1e-9  # numbers have been text
    poor = table[f"{kind.main}_last"] <= table[kind.baseline] + least
    if CHANCE not in table:
        return poor
    return poor.where(~are_uneven(table), table[f"{BALANCED}_last"] <= table[CHANCE] + least)


def warnings(table: pd.DataFrame, kind: Kind) -> list[str]:
    """Return a sentence that names the runs whose models are at chance, if there are any."""
    poor = table[at_chance(table, kind)]
    if poor.empty:
        return []
    by = ", by balanced accuracy" if are_uneven(poor).any() else ""
    return [f"No better than always the largest class{by}: {listed([*poor['run']])}."]


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
        `<metric>_sd` (of the sample, n - 1; nothing of a single run) of what the task compares and,
        on the validation part, of the loss and the main metric. Where there is one, the settings
        come in the order of that loss, the best first; else in that of the table.
    """
    inputs = [n for n in table if n not in ("run", "seed", *outcomes(kind))]
    settings = _filled(table, inputs)
    texts = settings.astype(str)
    differing = [name for name in inputs if texts[name].nunique() > 1]
    metrics = [f"{name}_{model}" for name in kind.compared for model in MODELS]
    metrics = [name for name in (*metrics, VALIDATION, validated(kind)) if name in table]
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
            metric = metric.removeprefix("validation_")
            shown[name] = [
                kind.text(metric, mean) + ("" if pd.isna(sd) else f" ± {kind.text(metric, sd)}")
                for mean, sd in zip(found[column], found[f"{name}_sd"], strict=True)
            ]
    return shown


def setting_of(found: pd.DataFrame, row: int) -> str:
    """Return what is set in a row of groups, of that in which they differ."""
    return ", ".join(f"{n} {found[n].iloc[row]}" for n in _set(found) if found[n].iloc[row] != "")


def names_of(table: pd.DataFrame, found: pd.DataFrame) -> list[str]:
    """Return what each row of groups is called: as its run, where each has one, or by its setting.

    Args:
        table: that of the runs.
        found: their groups.
    """
    if len(found) < len(table):
        return [setting_of(found, row) for row in range(len(found))]
    return [str(table["run"][_have(table, found, row)].iloc[0]) for row in range(len(found))]


def draws(table: pd.DataFrame, kind: Kind) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the runs that are draws of their own, and their groups: those with the same bits are
    one, whatever says where they were computed."""
    models = table.drop_duplicates("model_sha256", ignore_index=True)
    return models, groups(models, kind)


def choice(table: pd.DataFrame, kind: Kind) -> str:
    """Return which setting is best by the validation part, or why none is named; or nothing.

    Args:
        table: that of all runs.
        kind: their task.
    """
    models, found = draws(table, kind)
    names = _set(found)
    settings = _filled(models, names).astype(str)
    if len(found) < 2:
        return ""
    if VALIDATION not in table:
        if NO_CHOICE.issuperset(_chosen(settings)):
            return ""
        return (
            "No setting is named best: there is no validation part, and a choice by the test set "
            "makes its numbers too good. Set dataset.validation_fraction."
        )
    own = models["model_sha256"][_have(models, found, 0)]
    best = table[table["model_sha256"].isin(own)]
    values = {name: _filled(best, [name])[name].astype(str).unique() for name in _chosen(settings)}
    given = {name: listed([*filter(None, some)], "/", most=6) for name, some in values.items()}
    setting = ", ".join(f"{name} {value}" for name, value in given.items() if value)
    runs = f"{'run' if len(best) == 1 else 'runs'} {listed([*best['run']], most=6)}"
    said = f"Best by the loss on the validation part: {runs}{setting and f' ({setting})'}."
    mean = found[f"{VALIDATION}_mean"]
    same = ["The next one has the same loss."] if mean[0] == mean[1] else []
    return " ".join([said, *same, *cautions(found, names_of(models, found), kind)])


def cautions(found: pd.DataFrame, names: Sequence[str], kind: Kind) -> list[str]:
    """Return how far the choice of the best setting by the validation part can be trusted.

    Args:
        found: the groups.
        names: what each is called.
        kind: their task.
    """
    said = []
    mean, sd = found[f"{VALIDATION}_mean"], found[f"{VALIDATION}_sd"].fillna(0)
    if (found["runs"] < 2).any():
        said.append("Of a single seed, nobody knows how far that can be trusted.")
    elif 0 < mean[1] - mean[0] < max(sd[0], sd[1]):
        said.append(
            f"The difference to {names[1]} is smaller than the spread over seeds: it may be as "
            f"good."
        )
    said += _by_metric(found, names, kind)
    if "class_weights" in _set(found):
        said.append("Where classes are of very different sizes, look at balanced accuracy as well.")
    return said


def _by_metric(found: pd.DataFrame, names: Sequence[str], kind: Kind) -> list[str]:
    """Return a sentence where the main metric on the validation part has another setting first."""
    column = f"{validated(kind)}_mean"
    if column not in found or found[column].isna().all():
        return []
    mean = found[column].astype(float).reset_index(drop=True)
    first = int(mean.argmax() if kind.main in kind.shares else mean.argmin())
    ahead, best = kind.text(kind.main, mean[first]), kind.text(kind.main, mean[0])
    if ahead == best:
        return []
    said = f"By {kind.title(kind.main)} there, {names[first]} is ahead: {ahead} against {best}"
    if kind.classes:
        said += (
            "; a loss also counts how sure a model is of its errors (keep: best takes the epoch "
            "before it is too sure)"
        )
    return [f"{said}."]


def _set(found: pd.DataFrame) -> list[Hashable]:
    """Return the settings in which groups differ."""
    return list(found.columns[: list(found.columns).index("runs")])


def _have(table: pd.DataFrame, found: pd.DataFrame, row: int) -> pd.Series:
    """Return of each run whether it has the setting of a row of groups."""
    settings = _filled(table, _set(found)).astype(str)
    return (settings == found[_set(found)].astype(str).iloc[row]).all(axis=1)


def _filled(table: pd.DataFrame, names: Sequence[Hashable]) -> pd.DataFrame:
    """Return settings with a text for what a run has not set: pandas would leave out such runs."""
    settings = table[[*names]].astype(object)
    settings = settings.where(settings.notna() & (settings != ""), NONE)
    for name in {*ASKED} & {*names}:
        settings[name] = settings[name].replace(NONE, "")
    return settings


def _chosen(settings: pd.DataFrame) -> list[Hashable]:
    """Return those of the columns in which runs differ that do not follow from another of them:
    what the strategies of some do not read, and how many snapshots there are by default."""
    follow = {name for name in ASKED if name in settings and len({*settings[name]} - {""}) < 2}
    if {"epochs", "snapshots"} <= {*settings}:
        default = [str(Run(epochs=epochs).snapshots) for epochs in settings["epochs"]]
        if default == [*settings["snapshots"]]:
            follow.add("snapshots")
    return [name for name in settings if name not in follow]
