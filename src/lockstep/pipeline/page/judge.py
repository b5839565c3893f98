"""What the numbers of runs allow to be said: intervals, ties, whether a loss has come to rest, and
whether speeds can be compared. Each judgement is one function here, and the page says its rule."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from lockstep.pipeline.kinds import Kind
from lockstep.pipeline.page.collect import Check, Found

LEVEL = 0.05
# A loss that falls by less than this share of its whole fall in the last fifth has come to rest.
AT_REST = 0.01
# A loss on the validation part that ends this much above its lowest is past it.
PAST = 1.05
# Epochs whose middle half spreads by no more than this share of the median are steady.
STEADY = 0.2

UNSEEN = "the load is not known: nothing is there of lockstep check"

Interval = tuple[float, float]


def errors(found: Found, model: str) -> np.ndarray | None:
    """Return how wrong a model is on each sample of the test set (float64, N), if that is known:
    0 or 1 with classes, the mean squared error with numbers."""
    table = found.predictions
    if table is None:
        return None
    if found.kind.classes:
        return np.asarray(table["label"] != table[model], float)
    squared = (table[model] - table["target"]) ** 2
    return squared.groupby(table["sample"]).mean().to_numpy(float)


def interval(found: Found, model: str) -> Interval | None:
    """Return the 95 % interval of a model's main metric: Wilson's of a share, the normal one of a
    mean squared error, brought to its root; of others what `evaluate` found."""
    measured = getattr(found.metrics, model, None)
    if ends := getattr(measured, f"{found.kind.main}_interval", None):
        return ends[0], ends[1]
    wrong = errors(found, model)
    if wrong is None or len(wrong) < 2:
        return None
    if found.kind.classes:
        from scipy.stats import binomtest

        of = binomtest(int((1 - wrong).sum()), len(wrong)).proportion_ci(method="wilson")
        return float(of.low), float(of.high)
    half = 1.96 * float(wrong.std(ddof=1)) / math.sqrt(len(wrong))
    mean = float(wrong.mean())
    return math.sqrt(max(mean - half, 0)), math.sqrt(mean + half)


def p_value(first: np.ndarray, second: np.ndarray, kind: Kind) -> float:
    """Return how likely two models that are equally good differ as these do, on the same samples:
    McNemar's exact test with classes, the paired t-test of the squared errors with numbers."""
    apart = first - second
    if not apart.any():
        return 1.0
    if kind.classes:
        from scipy.stats import binomtest

        return float(binomtest(int((apart > 0).sum()), int((apart != 0).sum())).pvalue)
    from scipy.stats import ttest_rel

    return float(ttest_rel(first, second).pvalue)


def holm(values: Mapping[str, float]) -> dict[str, float]:
    """Return p-values of several comparisons, corrected for their number by Holm's method."""
    found, most = {}, 0.0
    for place, (name, value) in enumerate(sorted(values.items(), key=lambda item: item[1])):
        most = max(most, min(1.0, value * (len(values) - place)))
        found[name] = most
    return found


def headline(found: Found) -> str:
    """Return which of a run's models stands for it: the last one, or where that is the replica of
    one shard, the mean of all."""
    assert found.training
    return "averaged" if found.training.configuration.one_shot else "last"


def worse(runs: Sequence[Found]) -> tuple[Found, dict[str, float]] | None:
    """Return the run with the best model, and the corrected p-value of each other against it.

    None: there are no two that can be compared.
    """
    known = {one.name: errors(one, headline(one)) for one in runs}
    able = {name: wrong for name, wrong in known.items() if wrong is not None}
    same = [one for one in runs if one.name in able]
    if len(able) < 2 or any(one.data_sha256 != same[0].data_sha256 for one in same):
        return None
    best = min(same, key=lambda one: able[one.name].mean())
    others = {
        name: p_value(wrong, able[best.name], best.kind)
        for name, wrong in able.items()
        if name != best.name
    }
    return best, holm(others)


def flattened(found: Found) -> str:
    """Return the schedule of a run whose learning rate fell to 0, or nearly; nothing of others."""
    assert found.training
    run = found.training.configuration
    ends = run.schedule in ("cosine", "onecycle") and not found.training.stopped_early
    return run.schedule if ends else ""


def rest(history: pd.DataFrame, schedule: str = "") -> tuple[str, str]:
    """Return whether a training came to rest (yes, flat, no, past, diverged or short), and why.

    Args:
        history: of its epochs.
        schedule: that whose learning rate fell to 0, which flattens any loss, if it has.
    """
    name = "validation_loss" if "validation_loss" in history else "loss"
    what = name.replace("_", " ") if name != "loss" else "training loss"
    if name not in history or len(history) < 5:
        return "short", f"{len(history)} epochs are too few to tell"
    values = history[name].to_numpy(float)
    if not np.isfinite(values).all():
        return (
            "diverged",
            f"the {what} became no number in epoch {int(np.argmin(np.isfinite(values))) + 1}",
        )
    fifth = math.ceil(len(values) / 5)
    end, before = float(values[-fifth:].mean()), float(values[-2 * fifth : -fifth].mean())
    lowest, at = float(values.min()), int(values.argmin())
    if lowest >= values[0]:
        return "diverged", f"the {what} never fell below that of the first epoch"
    if name == "validation_loss" and at < len(values) - fifth and end > lowest * PAST:
        return (
            "past",
            f"the {what} was lowest in epoch {at + 1}, and ends {end / lowest - 1:.0%} above",
        )
    fall = (before - end) / (float(values[0]) - lowest)
    said = f"the {what} fell by {max(fall, 0):.1%} of its whole fall in the last fifth"
    if fall > AT_REST:
        return "no", said
    if schedule:
        return "flat", (
            f"{said}, but {schedule} has the learning rate fall to 0, which flattens any loss: "
            f"nothing is said of a longer training"
        )
    return "yes", said


def rates(found: Found) -> tuple[float, float, float] | None:
    """Return the median over epochs of samples per second, and its quartiles."""
    column = found.kind.rate
    if column not in found.history or found.history.empty:
        return None
    of = found.history[column].to_numpy(float)
    low, middle, high = np.quantile(of[np.isfinite(of)], [0.25, 0.5, 0.75])
    return float(middle), float(low), float(high)


def doubts(found: Found, check: Check | None) -> list[str]:
    """Return why a run's speed is not to be believed; nothing, where nothing speaks against it."""
    said = []
    spread = rates(found)
    if spread and spread[2] - spread[1] > STEADY * spread[0]:
        said.append(
            f"the middle half of its epochs spreads by {(spread[2] - spread[1]) / spread[0]:.0%}"
        )
    assert found.training
    run = found.training.configuration
    places = check.ranks if check else []
    hosts = len({place.host for place in places}) or 1
    wanted = run.ranks * run.threads / hosts
    loaded = max(places, key=lambda place: place.load / place.cores, default=None)
    if loaded is None:
        said.append(UNSEEN)
    elif wanted > loaded.cores:
        said.append(f"{wanted:g} threads on {loaded.cores} cores")
    elif loaded.load + wanted > loaded.cores + 0.5:
        said.append(f"a load of {loaded.load:.1f} on {loaded.cores} cores before it began")
    return said
