"""What is said of a run in several places of the page: one definition of each."""

import math
from collections.abc import Callable, Sequence

from lockstep.pipeline import groups
from lockstep.pipeline.page.collect import Found


def letters(found: Sequence[Found]) -> dict[str, str]:
    """Return a letter for each model, by its hash, as the table of runs has it."""
    return groups.letters(one.training.model_sha256 for one in found if one.training)


def same_models(found: Sequence[Found]) -> dict[str, list[str]]:
    """Return the runs that gave each model, by its letter."""
    named, runs = letters(found), dict[str, list[str]]()
    for one in found:
        if one.training:
            runs.setdefault(named[one.training.model_sha256], []).append(one.name)
    return runs


def title_of(found: Found, model: str) -> str:
    """Return which of a run's models that is, in words."""
    assert found.training
    run, best = found.training.configuration, found.training.best
    if model == "averaged":
        count = len(found.training.snapshots)  # a run that stopped early may have fewer
        return "mean of all replicas" if run.one_shot else f"mean of the last {count}"
    if run.one_shot:
        return "replica of shard 0"
    return f"best, epoch {best.epoch}" if run.keep == "best" and best else "last epoch"


def last_of(found: Sequence[Found]) -> str:
    """Return what the model `last` of some runs is called in a title."""
    trained = [one for one in found if one.training]
    kept = [title_of(one, "last").startswith("best") for one in trained]
    return "best epoch" if kept and all(kept) else "last"


def value_of(found: Found, model: str, name: str = "") -> float:
    """Return a metric of a run's model, the main one if none is named."""
    assert found.metrics
    value = getattr(getattr(found.metrics, model), name or found.kind.main)
    return math.nan if value is None else float(value)


def figure_of(found: Found, model: str) -> str:
    """Return the main metric of a run's model for a person, with what is to be told beside it."""
    kind = found.kind
    said = kind.text(kind.main, value_of(found, model))
    return f"{said} ({more})" if (more := beside_of(found, model)) else said


def beside_of(found: Found, model: str) -> str:
    """Return what is told beside the main metric of a run's model, such as R², or nothing."""
    kind = found.kind
    if not kind.beside:
        return ""
    value = value_of(found, model, kind.beside)
    return f"{kind.title(kind.beside)} {kind.text(kind.beside, value)}"


def core_seconds(found: Found) -> float:
    """Return for how long a training held cores, were all of them busy."""
    assert found.training
    training = found.training
    # Nobody knows the seconds of each part of a run; its steps, and how many ranks did them.
    ranks = sum((s.last_step - s.first_step) * len(s.bytes_sent) for s in training.segments)
    return training.seconds * ranks / training.steps * training.configuration.threads


def state_of(found: Found) -> str:
    """Return how far a run is, in a few words."""
    newest = found.newest
    if found.state in ("training", "stopped") and "epoch" in newest:
        far = f"epoch {newest['epoch']} of {newest.get('epochs', '?')}"
        return f"{found.state}, {far}" + (f", {found.said}" if found.said else "")
    words = {"evaluating": "trained, not evaluated yet"}
    return words.get(found.state, found.state) + (f": {found.said}" if found.said else "")


def counted(names: Sequence[str], total: int) -> str:
    """Return which of so many runs these are: all of them, or how many, and their names."""
    if len(names) == total:
        return f"all {total} runs"
    return f"{len(names)} of {total}: {groups.listed(names, most=3)}"


def megabytes(count: float) -> str:
    """Return a number of bytes in MB (10^6)."""
    return f"{count / 1e6:,.2f}" if count < 1e8 else f"{count / 1e6:,.0f}"


def unique(found: Sequence[Found], of: Callable[[Found], str]) -> list[str]:
    """Return what runs have of something, each once, in order."""
    return list(dict.fromkeys(of(one) for one in found if one.training))
