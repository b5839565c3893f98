"""How every figure looks: one palette, one face, and the same bytes each time it is drawn."""

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from lockstep.files import atomic
from lockstep.pipeline.config import Run
from lockstep.strategies import catalogue

# The palette of Okabe and Ito ("Color universal design", 2008), which readers with any of the
# common colour blindnesses tell apart, without the yellow that a white page swallows.
BLUE, ORANGE, GREEN = "#0072b2", "#e69f00", "#009e73"
SKY, RED, PURPLE = "#56b4e9", "#d55e00", "#cc79a7"
INK, GREY, PALE = "#24292f", "#6e7781", "#d8dee4"

# What a thing has for a colour, it has in every figure.
LAST, AVERAGED, VALIDATION = BLUE, RED, GREEN
INPUT, COMPUTE, COMMUNICATION = PURPLE, SKY, ORANGE
BACKENDS = {"gloo": ORANGE, "mpi4py": BLUE, "nccl": GREEN}

matplotlib.rcParams.update(
    {
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "text.color": INK,
        "text.parse_math": False,  # a class may be called "a$b$"
        "axes.labelcolor": INK,
        "axes.edgecolor": GREY,
        "axes.linewidth": 0.8,
        "axes.titlesize": 10,
        "figure.titlesize": 10,
        "figure.labelsize": 9,
        "axes.titlelocation": "left",
        "axes.titlepad": 8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "grid.color": PALE,
        "grid.linewidth": 0.6,
        "xtick.color": GREY,
        "ytick.color": GREY,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "legend.frameon": False,
        "figure.constrained_layout.h_pad": 0.06,
        "figure.constrained_layout.w_pad": 0.06,
        "svg.hashsalt": "lockstep",
    }
)


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches that lays itself out."""
    # Snakemake's report centres a figure in the window: one taller than 7 inches loses its top.
    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Figure, path: Path) -> None:
    """Write a figure as an SVG, atomically, and with no date in it."""
    with atomic(path) as draft:
        figure.savefig(draft, format="svg", metadata={"Date": None})


def shorten(text: str, length: int = 18) -> str:
    """Return `text`, or its beginning with an ellipsis where it is longer than `length`."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def percent(share: float) -> str:
    """Return a share as a percentage with as many digits as test sets of usual sizes have."""
    return f"{share:.2%}"


def describe(run: Run) -> str:
    """Return what a run was, in a few words."""
    shards, ranks = count(run.shards, "shard"), count(run.ranks, "rank")
    return f"{run.model}, {catalogue.of(run).label}, {shards} on {ranks}"


def count(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural where it must be."""
    return f"{number:,} {noun}" + "s" * (number != 1)


def size(number: float) -> str:
    """Return a number of bytes, best a power of two, in the unit that suits it."""
    units = ["B", "KiB", "MiB", "GiB"]
    power = min(max(int(number), 1).bit_length() - 1, 39) // 10
    return f"{number / 1024**power:g} {units[power]}"


def backend(name: str) -> str:
    """Return the colour of a backend."""
    return BACKENDS.get(name, PURPLE)
