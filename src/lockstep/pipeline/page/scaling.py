"""Speeds on more ranks, predicted from `check`; left out where that misses the run itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pandas as pd

from lockstep.files import DAMAGE
from lockstep.pipeline import launch
from lockstep.pipeline.page import judge
from lockstep.pipeline.page.collect import Found
from lockstep.pipeline.prediction import read_step, weak
from lockstep.strategies import catalogue

if TYPE_CHECKING:
    from lockstep.pipeline.fit import Fit

# A prediction that is farther off than this share, on the ranks that a run had, is left out.
NEAR = 0.25
# How many times as many ranks it is asked for.
TIMES = (4, 16)


def predictions_of(results: Path, found: Sequence[Found]) -> list[dict[str, Any]]:
    """Return what is predicted of each run whose step is computing and then one sum, and how far
    off it is where it can be compared: on the run's own ranks."""
    rows = []
    for one in found:
        fit, rate = _fit(results, one), judge.rates(one)
        if fit is None or rate is None or not one.training:
            continue
        step = read_step(one.training, one.history)
        own = weak(step, fit, step.ranks)
        off = own / rate[0] - 1
        more = []
        if abs(off) <= NEAR:
            ahead = [weak(step, fit, step.ranks * times) for times in TIMES]
            more = [[speed * part / rate[0] for part in rate] for speed in ahead]
        figure = one.folder / "figures/scaling.svg"
        rows.append(
            {
                "name": one.name,
                "ranks": step.ranks,
                "measured": rate[0],
                "own": own,
                "off": off,
                "more": more,
                "figure": f"{quote(one.name)}/figures/scaling.svg" if figure.exists() else "",
            }
        )
    return rows


def _fit(results: Path, found: Found) -> Fit | None:
    """Return the model of a run's all-reduce, from what `check` measured of its launch."""
    if not found.training:
        return None
    run = found.training.configuration
    if run.ranks == 1 or not catalogue.of(run).one_sum:
        return None
    from lockstep.pipeline.fit import fit_all  # it loads SciPy

    try:
        table = pd.read_csv(results / "check" / f"{launch.world(run)}.csv")
        which = (table["operation"] == "all_reduce") & (table["backend"] == found.training.backend)
        return next(iter(fit_all(table[which], run.ranks)), None)
    except DAMAGE:
        return None
