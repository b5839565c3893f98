"""Speeds on more ranks: measured against one rank, and predicted from `check`, which is left out
where it misses what it was fitted to, or the run itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pandas as pd

from lockstep.files import DAMAGE
from lockstep.pipeline import launch
from lockstep.pipeline.config import PLACE, Run
from lockstep.pipeline.groups import ASKED
from lockstep.pipeline.page import judge
from lockstep.pipeline.page.collect import Found
from lockstep.pipeline.prediction import read_step, strong, weak
from lockstep.strategies import catalogue

if TYPE_CHECKING:
    from lockstep.pipeline.fit import Fit

# A prediction that is farther off than this share, on the ranks that a run had, is left out.
NEAR = 0.25
# How many times as many ranks it is asked for.
TIMES = (4, 16)


def scaling_of(results: Path, found: Sequence[Found]) -> list[dict[str, Any]]:
    """Return how well runs on several ranks use them, a row for each that one can be compared with.

    It is compared with the fastest run of the same on one rank: of the same batch (strong scaling),
    or of as many samples on each rank (weak scaling, another experiment). Intervals are from the
    quartiles of both runs' epochs, and the prediction's from those of the one rank's and what the
    fit to `check`'s times is off by.
    """
    done = list[tuple[Found, Run, tuple[float, float, float]]]()
    for one in found:
        rates = judge.rates(one)
        if one.training and rates:
            done.append((one, one.training.configuration, rates))
    rows = []
    for one, run, (rate, slow, fast) in done:
        for how, share in (("strong", 1), ("weak", run.ranks)) if run.ranks > 1 else ():
            alone = [
                (other, rates)
                for other, set_to, rates in done
                if set_to.ranks == 1 and set_to.batch * share == run.batch
                if _work(other, set_to) == _work(one, run)
            ]
            if not alone:
                continue
            of, (middle, low, high) = max(alone, key=lambda pair: pair[1][0])
            history = one.history
            seconds = history["seconds"].sum()
            rows.append(
                {
                    "name": one.name,
                    "how": how,
                    "alone": of.name,
                    "ranks": run.ranks,
                    "rate": rate,
                    "speedup": rate / middle,
                    "efficiency": [
                        part / run.ranks for part in (rate / middle, slow / high, fast / low)
                    ],
                    "communication": history["communication_seconds"].sum() / seconds,
                    "idle": history["idle_seconds"].sum() / seconds,
                    "input": history["input_seconds"].sum() / seconds,
                    "predicted": _predict(results, one, of, how),
                    "sha256": one.training.model_sha256 if one.training else "",
                }
            )
    return rows


def _work(found: Found, run: Run) -> dict[str, Any]:
    """Return what a run is set to of that which its time for a sample follows from, and what it was
    computed on."""
    apart = {*PLACE, *ASKED, "strategy", "seed", "batch", "shards", "snapshots", "epochs"}
    assert found.training
    machines = {(place.device, place.processor) for place in found.training.ranks}
    return {**run.model_dump(exclude=apart), "data": found.training.dataset, "on": machines}


def _predict(results: Path, found: Found, alone: Found, how: str) -> list[float] | None:
    """Return the speed of a run as that of one rank and the fit foretell it, with an interval."""
    fit = _fit(results, found)
    if fit is None or fit.deviation > NEAR:
        return None
    assert found.training and alone.training
    ranks, history = found.training.configuration.ranks, alone.history
    step, each = read_step(alone.training, history), alone.training.steps / len(history)
    computing = (history["compute_seconds"] + history["input_seconds"]) / each

    def at(share: float, off: float) -> float:
        """Return the speed with this quantile of the computing, and sums so many times as long."""
        slower = replace(fit, alpha=fit.alpha * off, beta=fit.beta / off)
        one_step = replace(step, compute=float(computing.quantile(share)))
        return (strong if how == "strong" else weak)(one_step, slower, ranks)

    off = 1 + fit.deviation
    return [at(0.5, 1), at(0.75, off), at(0.25, 1 / off)]


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
