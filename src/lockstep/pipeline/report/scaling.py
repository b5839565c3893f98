"""How fast a run would be on more ranks: a prediction from what was measured, drawn as one."""

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from lockstep.pipeline.fit import Fit, fit_all
from lockstep.pipeline.prediction import Step, read_step, strong, weak
from lockstep.pipeline.record import Training
from lockstep.pipeline.report import style
from lockstep.pipeline.report.communication import count_hosts, say_where
from lockstep.pipeline.report.curves import spread

# Ranks up to which a run's speed is predicted.
MOST_RANKS = 1024
"""Ranks up to which is predicted."""


def draw_scaling(
    name: str,
    training: Training,
    history: pd.DataFrame,
    check: dict[str, Any],
    table: pd.DataFrame,
    unit: str = "images",
) -> Figure:
    """Draw the samples per second of a run on up to 1,024 ranks, predicted for each backend."""
    step = read_step(training, history)
    fits = [one for one in fit_all(table, len(check["ranks"])) if one.operation == "all_reduce"]
    figure = style.new_figure(10, 5.4)
    where = "" if count_hosts(check) > 1 else "; the network between hosts is not in it"
    figure.suptitle(
        f"{name}: PREDICTED, not measured, from {say_where(check)}{where}\n"
        f"a step of {step.compute * 1e3:.3g} ms of computing, and one all_reduce of "
        f"{step.gradients:,} bytes after it",
        x=0.01,
        ha="left",
    )
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[3, 2])
    left.set_title(f"weak scaling: {step.samples / step.ranks:g} {unit} on each rank")
    _draw(left, step, fits, weak, [2**k for k in range(MOST_RANKS.bit_length())])
    left.set_ylabel(f"{unit} per second")
    right.set_title(f"strong scaling: {step.samples} {unit} on all, {step.shards} shards")
    shares = [ranks for ranks in range(1, MOST_RANKS + 1) if step.shards % ranks == 0]
    _draw(right, step, fits, strong, shares)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure


def _draw(
    axes: Axes,
    step: Step,
    fits: list[Fit],
    predict: Callable[[Step, Fit, int], float],
    ranks: Sequence[int],
) -> None:
    alone = step.samples / step.ranks / step.compute
    axes.plot(ranks, [alone * count for count in ranks], ":", color=style.GREY, label="ideal")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlim(0.8, 4 * ranks[-1])
    ends = []
    for fit in fits:
        rates = [predict(step, fit, count) for count in ranks]
        colour = style.backend(fit.backend)
        label = f"{fit.backend}, predicted"
        axes.plot(ranks, rates, "--o", color=colour, markersize=3, label=label)
        ends.append((rates[-1], f"{rates[-1] / alone / ranks[-1]:.0%} of ideal", colour))
    axes.plot(step.ranks, step.samples / step.seconds, "D", color=style.INK, label="measured")
    axes.set_xlabel("ranks")
    axes.xaxis.set_major_locator(FixedLocator([1, 4, 16, 64, 256, MOST_RANKS]))
    axes.xaxis.set_minor_locator(NullLocator())
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.grid()
    _label_ends(axes, ranks[-1], sorted(ends))


def _label_ends(axes: Axes, at: int, ends: list[tuple[float, str, str]]) -> None:
    """Write (height, text, colour) to the right of the lines' ends, none on another."""
    place = axes.transData + axes.transAxes.inverted()
    heights = spread([place.transform((at, height))[1] for height, _, _ in ends], gap=0.05)
    for (_, text, colour), height in zip(ends, heights, strict=True):
        axes.annotate(
            text,
            (at, height),
            xycoords=axes.get_xaxis_transform(),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=colour,
        )
