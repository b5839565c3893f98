"""All runs beside one another: how good their models are, and how fast they were trained."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from lockstep.report import style


def draw_accuracy(table: pd.DataFrame) -> Figure:
    """Draw the accuracy of the last and the averaged model, and images/s, a row for each run."""
    count = len(table)
    height = min(1.8 + 0.3 * count, 6.6)
    figure = style.new_figure(10, height)
    size = min(9.0, (height - 1) * 72 / count)  # a line each; more than 45 take a reader's zoom
    accuracy, speed = figure.subplots(1, 2, sharey=True, width_ratios=[3, 2])
    rows = range(count)
    last, averaged = table["accuracy_last"], table["accuracy_averaged"]
    accuracy.hlines(rows, last, averaged, color=style.GREY, linewidth=1)
    accuracy.plot(last, rows, "o", color=style.LAST, markersize=6, label="last model")
    # Hollow and larger: where the two agree, both are still seen.
    accuracy.plot(
        averaged,
        rows,
        "D",
        color=style.AVERAGED,
        fillstyle="none",
        markersize=8,
        markeredgewidth=1.4,
        label="averaged model",
    )
    accuracy.set_yticks(rows, [style.shorten(run, 28) for run in table["run"]], fontsize=size)
    accuracy.set_ylim(count - 0.4, -0.6)
    accuracy.margins(x=0.08)
    accuracy.xaxis.set_major_locator(MaxNLocator(6))
    accuracy.xaxis.set_major_formatter(StrMethodFormatter("{x:.4g}"))
    accuracy.set_xlabel("accuracy on the test set")
    accuracy.grid()

    bars = speed.barh(rows, table["images_per_second"], color=style.GREEN, height=0.5)
    speed.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize=0.9 * size)
    speed.margins(x=0.16)
    speed.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    speed.xaxis.set_major_locator(MaxNLocator(4))
    speed.set_xlabel("images per second in training")
    speed.tick_params(left=False)
    figure.legend(*accuracy.get_legend_handles_labels(), loc="outside upper left", ncols=2)
    return figure
