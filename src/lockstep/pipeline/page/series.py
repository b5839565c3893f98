"""The numbers that page.js draws and compares: what histories have, and what differs."""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from lockstep.pipeline import differences
from lockstep.pipeline.page import judge
from lockstep.pipeline.page.collect import Found

# Runs up to which every two of them are compared beforehand; of more, each with the first.
MOST_PAIRED = 12
# Epochs of a curve; of more, evenly spread ones.
MOST_POINTS = 300


def curves_of(found: Found) -> dict[str, Any]:
    """Return the epochs of a run and what history.csv has of them, for the charts."""
    kind, history = found.kind, found.history
    if "epoch" not in history:
        return {"epoch": []}
    every = max(1, math.ceil(len(history) / MOST_POINTS))
    some = history[(history.index % every == 0) | (history.index == len(history) - 1)]
    names = [f"{part}{name}" for name in ("loss", *kind.trained) for part in ("", "validation_")]
    return {"epoch": [int(e) for e in some["epoch"]]} | {
        name: [_rounded(value) for value in some[name]] for name in names if name in some
    }


def _rounded(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return float(f"{number:.5g}") if math.isfinite(number) else None


def pairs_of(found: Sequence[Found]) -> dict[str, Any]:
    """Return what differs between two runs, by their numbers, as `lockstep diff` says it."""
    trained = [(at, one) for at, one in enumerate(found) if one.training]
    firsts = trained if len(trained) <= MOST_PAIRED else trained[:1]
    pairs = {}
    results: dict[int, pd.DataFrame] = {at: one.results for at, one in trained}
    for i, first in firsts:
        for j, second in trained:
            if i < j:
                assert first.training and second.training
                same = differences.results(first.training, second.training)
                pairs[f"{i} {j}"] = {
                    "causes": differences.causes(first.training, second.training),
                    "code": differences.code(first.training, second.training),
                    "different": [name for name, equal in same.items() if not equal],
                    **_begins(results[i], results[j], all(same.values())),
                }
    return {
        "runs": [[at, one.name] for at, one in trained],
        "firsts": [at for at, _ in firsts],
        "pairs": pairs,
        "compared": list(differences.RESULTS),
    }


def _begins(first: pd.DataFrame, second: pd.DataFrame, same: bool) -> dict[str, str]:
    """Return from which epoch on two histories differ, whichever of them is named first."""
    if same:
        return {"begins": "", "swapped": ""}
    both = differences.begins(first, second), differences.begins(second, first)
    return dict(zip(("begins", "swapped"), both, strict=True))


def speed_of(found: Found) -> dict[str, Any]:
    """Return a run's speed, with its quartiles, and the bytes that it sent."""
    rate = judge.rates(found)
    if not found.training or rate is None:
        return {}
    return {"rate": [round(value, 1) for value in rate], "sent": sum(found.training.bytes_sent)}
