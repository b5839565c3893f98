"""All runs beside one another: how good their models are, how fast they were trained, and how much
the ranks sent."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from lockstep.pipeline.kinds import Kind
from lockstep.pipeline.report import style


def draw_comparison(table: pd.DataFrame, kind: Kind) -> Figure:
    """Draw how good the last and the averaged model are, speed and bytes, a row for a run."""
    count = len(table)
    height = min(1.8 + 0.3 * count, 6.6)
    figure = style.new_figure(10, height)
    size = min(9.0, (height - 1) * 72 / count)  # a line each; more than 45 take a reader's zoom
    quality, speed, sent = figure.subplots(1, 3, sharey=True, width_ratios=[3, 2, 2])
    rows = range(count)
    last, averaged = table[f"{kind.main}_last"], table[f"{kind.main}_averaged"]
    quality.hlines(rows, last, averaged, color=style.GREY, linewidth=1)
    quality.plot(last, rows, "o", color=style.LAST, markersize=6, label="last model")
    # Hollow and larger: where the two agree, both are still seen.
    quality.plot(
        averaged,
        rows,
        "D",
        color=style.AVERAGED,
        fillstyle="none",
        markersize=8,
        markeredgewidth=1.4,
        label="averaged model",
    )
    quality.set_yticks(rows, [style.shorten(run, 28) for run in table["run"]], fontsize=size)
    quality.set_ylim(count - 0.4, -0.6)
    quality.margins(x=0.08)
    quality.xaxis.set_major_locator(MaxNLocator(6))
    quality.xaxis.set_major_formatter(StrMethodFormatter("{x:.4g}"))
    quality.set_xlabel(f"{kind.title(kind.main)} on the test set")
    quality.grid()

    for axes, values, title, places, colour in (
        (speed, table[kind.rate], f"{kind.unit} per second in training", 0, style.GREEN),
        (sent, table["bytes_sent"] / 1e6, "MB sent in training, all ranks", 1, style.ORANGE),
    ):
        bars = axes.barh(rows, values, color=colour, height=0.5)
        axes.bar_label(bars, fmt=f"{{:,.{places}f}}", padding=3, fontsize=0.9 * size)
        axes.margins(x=0.2)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.set_xlabel(title)
        axes.tick_params(left=False)
    figure.legend(*quality.get_legend_handles_labels(), loc="outside upper left", ncols=2)
    return figure
