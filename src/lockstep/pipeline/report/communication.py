"""What `check` measured of a launch's communication: by size, with the model fitted to it."""

import math
from collections.abc import Callable
from html import escape
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from lockstep.pipeline.fit import fit_all
from lockstep.pipeline.report import style
from lockstep.pipeline.report.page import make_page, make_table

TITLES = {
    "all_reduce": "all_reduce",
    "send_recv": "send, recv (ping-pong)",
    "isend_irecv": "isend, irecv (both ways)",
    **{name: name for name in ("broadcast", "reduce", "all_gather", "gather", "scatter")},
    **{name: name for name in ("reduce_scatter", "all_to_all")},
}
ONE_HOST = "All ranks were on one host: the network between hosts is not in these numbers."
NOTE = """<p class="note">Fitted: time = steps(P) &middot; latency + bytes(P) / bandwidth, where the
latency is that of one step and the bandwidth the bus bandwidth that long messages come to. The
deviation is the median over the sizes of |measured / fitted &minus; 1|. Gloo is taken to go round a
ring, 2(P&minus;1) steps for an all_reduce; MPI and NCCL to halve and double, 2 log<sub>2</sub>P.
</p>"""


def say_where(check: dict[str, Any]) -> str:
    """Return how many ranks on how many hosts a launch had, in words."""
    return (
        f"{style.count(len(check['ranks']), 'rank')} on {style.count(count_hosts(check), 'host')}"
    )


def count_hosts(check: dict[str, Any]) -> int:
    """Return on how many hosts the ranks were."""
    return len({place["host"] for place in check["ranks"]})


def draw_latency(name: str, check: dict[str, Any], table: pd.DataFrame) -> Figure:
    """Draw the microseconds of each operation over its size, a line for each backend."""
    ranks = len(check["ranks"])
    fits = fit_all(table, ranks)

    def draw(axes: Axes, rows: pd.DataFrame, colour: str) -> None:
        axes.plot(rows["bytes"], rows["median_us"], "o-", color=colour, markersize=3)
        low, high = rows["min_us"], rows["p99_us"]
        axes.fill_between(rows["bytes"], low, high, color=colour, alpha=0.15, linewidth=0)
        what = tuple(rows[["backend", "operation"]].iloc[0])
        for one in fits:
            if (one.backend, one.operation) == what:
                times = [one.seconds(size, ranks) * 1e6 for size in rows["bytes"]]
                axes.plot(rows["bytes"], times, "--", color=colour, linewidth=1)

    figure = _draw_panels(table, draw)
    figure.suptitle(
        f"{name}, {say_where(check)}: median time; shaded from the shortest to the 99th "
        "percentile, dashed the fit",
        x=0.01,
        ha="left",
    )
    figure.supylabel("microseconds")
    return figure


def draw_bandwidth(name: str, check: dict[str, Any], table: pd.DataFrame) -> Figure:
    """Draw the bus bandwidth of each operation over its size, a line for each backend."""

    def draw(axes: Axes, rows: pd.DataFrame, colour: str) -> None:
        axes.plot(rows["bytes"], rows["busbw_gbs"], "o-", color=colour, markersize=3)

    figure = _draw_panels(table, draw)
    title = f"{name}, {say_where(check)}: bus bandwidth at the median time"
    figure.suptitle(title, x=0.01, ha="left")
    figure.supylabel("GB/s")
    figure.axes[0].set_ylim(bottom=1e-3)  # all panels have one scale; below it is only latency
    return figure


def _draw_panels(table: pd.DataFrame, draw: Callable[[Axes, pd.DataFrame, str], None]) -> Figure:
    """Draw a panel for each operation that has sizes, all to one scale."""
    table = table[table["bytes"] > 0].sort_values("bytes", kind="stable")
    figure = style.new_figure(12, 6.4)
    operations = [name for name in TITLES if name in set(table["operation"])]
    panels = figure.subplots(2, -(-len(operations) // 2), sharex=True, sharey=True).flatten()
    for axes, operation in zip(panels, operations, strict=False):
        axes.set_title(TITLES[operation], fontsize=9)
        rows = table[table["operation"] == operation]
        for backend, some in rows.groupby("backend"):
            draw(axes, some, style.backend(str(backend)))
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.xaxis.set_major_locator(FixedLocator([8, 2**10, 2**17, 2**24]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: style.size(size)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.tick_params(labelbottom=True)
        axes.grid()
    for axes in panels[len(operations) :]:
        axes.set_visible(False)
    backends = sorted(set(table["backend"]))
    lines = [Line2D([], [], color=style.backend(name), marker="o") for name in backends]
    figure.legend(lines, backends, loc="outside lower center", ncols=len(backends))
    return figure


def page_of_communication(name: str, check: dict[str, Any], table: pd.DataFrame) -> str:
    """Return the page of a launch: what was fitted, and all that was measured."""
    fits = [
        [
            *(one.operation, one.backend),
            f"{one.alpha * 1e6:,.1f}",
            f"{one.beta / 1e9:,.2f}" if one.bandwidth_shows else "not seen",
            f"{one.deviation:.0%}",
        ]
        for one in fit_all(table, len(check["ranks"]))
    ]
    rows = [
        [
            *(escape(str(row[name])) for name in ("operation", "backend")),
            *(f"{row[name]:,}" for name in ("bytes", "iterations")),
            *(f"{row[name]:,.1f}" for name in ("min_us", "median_us", "p99_us")),
            *(_bandwidth(row[name]) for name in ("algbw_gbs", "busbw_gbs")),
        ]
        for row in table.to_dict("records")
    ]
    head = "operation", "backend", "bytes", "iterations", "min, µs", "median, µs", "99 %, µs"
    return make_page(
        f"Communication of {name}",
        f"<p>{say_where(check)}, {escape(check['mpi'])}. Every result was compared with what it "
        f"must be, and was right. {_say_load(check)} "
        f"{ONE_HOST if count_hosts(check) == 1 else ''}</p>",
        "<h2>Latency and bandwidth</h2>",
        make_table(
            ["operation", "backend", "latency, µs", "bandwidth, GB/s", "deviation"],
            fits,
            dict.fromkeys((2, 3, 4), "number"),
        ),
        NOTE,
        "<h2>By size</h2>",
        make_table(
            [*head, "algorithm, GB/s", "bus, GB/s"], rows, dict.fromkeys(range(2, 9), "number")
        ),
    )


def _say_load(check: dict[str, Any]) -> str:
    """Return what else went on, where most did: numbers from a busy machine are no good."""
    place = max(check["ranks"], key=lambda place: place["load"] / place["cores"])
    cores = style.count(place["cores"], "core")
    return escape(
        f"As it began, {place['host']} had a load average of {place['load']:.1f} on {cores}."
    )


def _bandwidth(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.4f}" if value < 0.1 else f"{value:,.2f}"
