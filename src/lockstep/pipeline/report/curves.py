"""What happened over a run's epochs: loss, metric and learning rate, and where the time went."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FuncFormatter,
    MaxNLocator,
    NullFormatter,
    PercentFormatter,
)

from lockstep.pipeline.config import Run
from lockstep.pipeline.kinds import CLASSIFICATION, Kind
from lockstep.pipeline.record import Segment
from lockstep.pipeline.report import style

# A loss that falls by more than this factor is drawn on a logarithmic axis.
LOGARITHMIC_FROM = 100.0
# More changes of the number of ranks than a title has room for.
MOST_CHANGES = 4


def draw_curves(
    name: str, run: Run, history: pd.DataFrame, metrics: dict[str, Any], kind: Kind = CLASSIFICATION
) -> Figure:
    """Draw loss, the task's metric and learning rate by epoch, on the validation part as well where
    there is one, and the metric on the test set."""
    figure, metric = style.new_figure(9, 6.6), kind.main
    loss, quality, rate = figure.subplots(3, sharex=True, height_ratios=[3, 3, 1])
    epochs = history["epoch"]
    line: dict[str, Any] = {"linewidth": 1.6, "color": style.INK}
    if len(epochs) <= 40:
        line |= {"marker": "o", "markersize": 3.5}

    loss.set_title(f"{name}: {style.describe(run)}")
    loss.plot(epochs, history["loss"], **line)
    loss.set_ylabel("training loss")
    validated = line | {"color": style.VALIDATION}
    if "validation_loss" in history:
        loss.set_ylabel("loss")
        loss.plot(epochs, history["validation_loss"], **validated)
    finite = history["loss"][np.isfinite(history["loss"])]
    if finite.empty:
        loss.text(0.5, 0.5, "not a number: it diverged", transform=loss.transAxes, ha="center")
    elif 0 < finite.min() * LOGARITHMIC_FROM < finite.max():
        _scale_by_factors(loss)
    if "validation_loss" in history:
        _mark_lowest(loss, history)

    quality.plot(epochs, history[metric], **line)
    quality.set_ylabel(kind.title(metric))
    if metric in kind.shares:
        quality.yaxis.set_major_formatter(PercentFormatter(1))
    elif 0 < history[metric].min() * LOGARITHMIC_FROM < history[metric].max():
        _scale_by_factors(quality)
    ends = [(history[metric].iloc[-1], "training", style.INK)]
    if f"validation_{metric}" in history:
        column = history[f"validation_{metric}"]
        quality.plot(epochs, column, **validated)
        ends.append((column.iloc[-1], "validation", style.VALIDATION))
    # The dashes lie over the whole line: where the two agree, both are still seen.
    for model, title, colour, dashes in (
        ("averaged", "test, averaged model", style.AVERAGED, "-"),
        (
            "last",
            f"test, {'shard 0 alone' if run.one_shot else f'{run.keep} model'}",
            style.LAST,
            (0, (6, 6)),
        ),
    ):
        value = metrics[model][metric]
        quality.axhline(value, color=colour, linewidth=1.5, linestyle=dashes)
        ends.append((value, title, colour))
    _label_ends(quality, [(v, f"{title} {kind.text(metric, v)}", c) for v, title, c in ends])

    line |= {"color": style.GREY, "linewidth": 1.2, "markersize": 2}
    rate.plot(epochs, history["lr"], **line)
    rate.set_ylim(bottom=0)
    rate.set_ylabel("learning rate")
    _number_epochs(rate, len(epochs))
    for axes in (loss, quality, rate):
        axes.grid(axis="y")
    figure.align_ylabels()
    return figure


def _mark_lowest(axes: Axes, history: pd.DataFrame) -> None:
    """Mark the epoch with the lowest loss on the validation part, and name the two lines."""
    training, validation = history["loss"], history["validation_loss"]
    best = int(validation.argmin())
    epoch, lowest = history["epoch"].iloc[best], validation.iloc[best]
    axes.plot(epoch, lowest, "o", color=style.VALIDATION, markersize=9, fillstyle="none")
    said = f"validation, lowest {lowest:.4g} in epoch {epoch}"
    ends = [(training.iloc[-1], "training", style.INK)]
    _label_ends(axes, [*ends, (validation.iloc[-1], said, style.VALIDATION)])


def _scale_by_factors(axes: Axes) -> None:
    """Give the axes a logarithmic height, with plain numbers."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _number_epochs(axes: Axes, count: int) -> None:
    axes.set_xlabel("epoch")
    axes.set_xlim(0.4, count + 0.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))


def _label_ends(axes: Axes, ends: list[tuple[float, str, str]]) -> None:
    """Write (height, text, colour) at the right of the axes, none on another."""
    place = axes.transData + axes.transAxes.inverted()
    lines = [(value, title, colour) for value, title, colour in ends if np.isfinite(value)]
    lines.sort(key=lambda line: line[0])
    heights = spread([float(place.transform((0, value))[1]) for value, _, _ in lines], gap=0.08)
    for (_, text, colour), height in zip(lines, heights, strict=True):
        axes.annotate(
            text,
            (1, height),
            xytext=(6, 0),
            xycoords="axes fraction",
            textcoords="offset points",
            va="center",
            color=colour,
        )


def spread(heights: list[float], gap: float) -> list[float]:
    """Move ascending heights apart by at least `gap`, and the highest to no more than 1."""
    moved: list[float] = []
    for height in reversed(heights):
        moved.append(min(height, moved[-1] - gap if moved else 1.0))
    return moved[::-1]


def ranks_over_time(parts: Sequence[Segment]) -> str:
    """Return how many ranks a run had, and from which step on, if their number changed."""
    counts = [(part.first_step, len(part.bytes_sent)) for part in parts]
    changes = counts[:1] + [b for a, b in pairwise(counts) if b[1] != a[1]]
    if len(changes) < 2:
        return ""
    told = [f"{ranks} from step {first} on" for first, ranks in changes[1:]]
    shown = told if len(told) <= MOST_CHANGES else [*told[:2], "…", *told[-2:]]
    return f"{changes[0][1]} ranks, {', '.join(shown)}"


def draw_time(
    name: str,
    run: Run,
    history: pd.DataFrame,
    steps_per_epoch: float,
    unit: str = "images",
    parts: Sequence[Segment] = (),
) -> Figure:
    """Draw the milliseconds of a step by part, stacked, epoch by epoch."""
    figure = style.new_figure(9, 4.6)
    axes = figure.subplots()
    total = history["seconds"].sum()
    below = np.zeros(len(history))
    for part, colour in (
        ("compute", style.COMPUTE),
        ("communication", style.COMMUNICATION),
        ("input", style.INPUT),
    ):
        seconds = history[f"{part}_seconds"]
        height = (seconds / steps_per_epoch * 1e3).to_numpy()
        axes.bar(
            history["epoch"],
            height,
            bottom=below,
            width=0.8 if len(history) <= 60 else 1.0,
            color=colour,
            antialiased=len(history) <= 60,  # hundreds of bars would have pale seams
            label=f"{part} ({seconds.sum() / total:.1%})",
        )
        below += height
    # Not the height of the bars: where communication overlaps, its parts may add up to more.
    step = history["seconds"].median() / steps_per_epoch
    ranks = ranks_over_time(parts)
    axes.set_title(
        f"{name}: {step * 1e3:.3g} ms a step of {run.batch} {unit} in the median epoch, "
        f"{run.batch / step:,.0f} {unit}/s" + ("\n" + ranks if ranks else "")
    )
    axes.set_ylabel("milliseconds a step, rank 0")
    _number_epochs(axes, len(history))
    axes.grid(axis="y")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure
