"""Tables of classes drawn as images: what was taken for what, and which shard has how many."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

from lockstep.pipeline.config import Run
from lockstep.pipeline.report import style

# Rows or columns up to which each cell has room for a number.
NUMBERED_UP_TO = 20
# So many of the most frequent errors are listed instead.
LISTED = 20
ERRORS = LinearSegmentedColormap.from_list("errors", ["#ffffff", "#f5b97a", style.RED, "#7a2f00"])
SAMPLES = LinearSegmentedColormap.from_list("samples", ["#ffffff", "#9fd0ee", style.BLUE])


def draw_confusion(name: str, table: pd.DataFrame, metrics: dict[str, Any]) -> Figure:
    """Draw the confusion matrix of the last model, each row as shares of its class, with the recall
    of the class, where there are not too many."""
    classes = list(metrics["per_class"])
    table = table[table["model"] == "last"]
    matrix = table.pivot(index="label", columns="predicted", values="samples")
    counts = matrix.loc[classes, classes].to_numpy()
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    # Colour is for the errors alone, on a scale of their own: right answers need no attention.
    errors = np.ma.masked_array(share, np.eye(len(classes), dtype=bool))

    few = len(classes) <= NUMBERED_UP_TO
    figure = style.new_figure(8 if few else 11, 6.6)
    if few:
        axes = figure.subplots()
    else:
        axes, worst = figure.subplots(1, 2, width_ratios=[3, 1])
        _list_errors(worst, counts, classes)
    # A scale of no less than 5 %: a few errors shall not look like many.
    most = max(float(np.ma.filled(errors, 0).max()), 0.05)
    image = axes.imshow(
        errors, cmap=ERRORS.with_extremes(bad=style.PALE), vmin=0, vmax=most, interpolation="none"
    )
    if few:
        _write_counts(axes, counts, image)
    recall = [f"  {of['recall']:.0%}" if few else "" for of in metrics["per_class"].values()]
    named = [style.shorten(name, 12) + r for name, r in zip(classes, recall, strict=True)]
    _name_ticks(axes, classes, named)
    axes.set_title(
        f"{name}: {metrics['correct']:,} of {counts.sum():,} right, accuracy "
        f"{style.percent(metrics['accuracy'])}, balanced "
        f"{style.percent(metrics['balanced_accuracy'])}, macro F1 {metrics['macro_f1']:.4f}"
    )
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class, and its recall" if few else "true class")
    _add_bar(figure, axes, image, "errors, as a share of the true class", percent=True)
    return figure


def draw_shards(name: str, run: Run, table: pd.DataFrame, classes: list[str]) -> Figure:
    """Draw how many samples of each class each shard has."""
    matrix = table.pivot(index="shard", columns="label", values="samples")
    # A class of the test set may have no sample to train on.
    counts = matrix.reindex(columns=range(len(classes)), fill_value=0).to_numpy()
    shards = [str(shard) for shard in matrix.index]

    rows, columns = counts.shape
    figure = style.new_figure(9, min(6.6, 2.8 + 0.3 * rows))
    axes = figure.subplots()
    most = max(int(counts.max()), 1)
    image = axes.imshow(
        counts, cmap=SAMPLES, vmin=0, vmax=most, interpolation="none", aspect="auto"
    )
    if columns <= NUMBERED_UP_TO and rows <= NUMBERED_UP_TO:
        _write_counts(axes, counts, image)
    _name_ticks(axes, classes, shards)
    scheme = run.scheme + (f", alpha {run.alpha:g}" if run.scheme == "dirichlet" else "")
    axes.set_title(f"{name}: {counts.sum():,} samples in {style.count(rows, 'shard')} ({scheme})")
    axes.set_xlabel("class")
    axes.set_ylabel("shard")
    _add_bar(figure, axes, image, "samples", percent=False)
    return figure


def _list_errors(axes: Axes, counts: np.ndarray, classes: list[str]) -> None:
    """Draw the most frequent errors as bars, the most frequent one at the top."""
    errors = counts - np.diag(np.diag(counts))
    order = np.argsort(-errors, axis=None, kind="stable")[:LISTED]
    pairs = [divmod(int(at), len(classes)) for at in order if errors.flat[at]]
    bars = axes.barh(range(len(pairs)), [errors[pair] for pair in pairs], color=style.RED)
    axes.bar_label(bars, padding=2, fontsize=7)
    names = [style.shorten(name, 14) for name in classes]
    axes.set_yticks(range(len(pairs)), [f"{names[i]} → {names[j]}" for i, j in pairs], fontsize=7)
    axes.tick_params(left=False, bottom=False, labelbottom=False)
    axes.spines["bottom"].set_visible(False)
    axes.set_ylim(LISTED - 0.5, -0.5)
    axes.set_title("most frequent errors (true → predicted)", fontsize=8, loc="right")


def _write_counts(axes: Axes, counts: np.ndarray, image: AxesImage) -> None:
    """Write each count but zero in its cell, in white where the cell is dark."""
    # Brightness as the eye has it (ITU-R BT.709).
    dark = image.to_rgba(np.ma.asarray(image.get_array()))[..., :3] @ (0.2126, 0.7152, 0.0722) < 0.5
    for row in range(1, len(counts)):
        axes.axhline(row - 0.5, color=style.PALE, linewidth=0.5)
    for column in range(1, counts.shape[1]):
        axes.axvline(column - 0.5, color=style.PALE, linewidth=0.5)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            colour = "white" if dark[row, column] else style.INK
            size = 8 if max(counts.shape) <= 12 else 6.5
            axes.text(
                column, row, f"{count}", color=colour, fontsize=size, ha="center", va="center"
            )


def _name_ticks(axes: Axes, columns: list[str], rows: list[str]) -> None:
    """Name columns and rows, or every second, fifth, … one where there is no room for all."""
    for axis, names, room in ((axes.xaxis, columns, 64), (axes.yaxis, rows, 52)):
        step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 1000) if len(names) <= room * step)
        labels = [style.shorten(name) for name in names[::step]]
        axis.set_ticks(
            range(0, len(names), step), labels, fontsize=9 if len(names) <= NUMBERED_UP_TO else 6
        )
    if max(map(len, columns)) > 3 or len(columns) > NUMBERED_UP_TO:
        axes.tick_params(axis="x", labelrotation=90)
    axes.tick_params(length=2)
    axes.spines[:].set_visible(False)


def _add_bar(figure: Figure, axes: Axes, image: AxesImage, label: str, percent: bool) -> None:
    bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02)
    bar.set_label(label)
    bar.outline.set_visible(False)
    if percent:
        bar.ax.yaxis.set_major_formatter(PercentFormatter(1))
    else:
        bar.ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        bar.ax.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
