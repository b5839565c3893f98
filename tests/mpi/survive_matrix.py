"""Ranks that die while others go on: every rank at every place, and walks at random.

`python -m tests.mpi.survive_matrix` (part of `make kills`) kills ranks of running jobs, compares
the ends with a run never killed, and writes docs/survive-matrix.md.
"""

import random
import sys
import tempfile
import time
from pathlib import Path

from tests.conftest import REPOSITORY, prepare_digits
from tests.mpi.matrix import say, short
from tests.mpi.survivors import STEPS, surviving, trained

TABLE = REPOSITORY / "docs" / "survive-matrix.md"
RANKS = (2, 3, 4)
SEEDS = range(20)

# Where a rank is killed: a fault, and what it is called. One that is killed "later" is so within
# 8 ms, wherever it is then: in a pass, in the reduction, in the agreement, in the optimizer's step.
PLACES = {
    "step:0:{}:kill": "before the first step",
    "step:13:{}:kill": "in the middle of an epoch",
    "step:14:{}:kill-later": "somewhere in a step",
    "step:21:{}:kill-later": "in an epoch's last step, or at its end",
    "step:43:{}:kill-later": "in the run's last step, or at its end",
}
SAVES = {
    "snapshot:0:{}:kill": "before the weights of an epoch are written",
    "written:20:{}:kill": "in a save: files written",
    "synced:20:{}:kill": "in a save: files synced, not renamed",
    "renamed:20:{}:kill": "in a save: renamed",
}


def walk(seed: int, ranks: int) -> list[str]:
    """Return the faults by which all ranks but one die, one after the other."""
    draw = random.Random(seed)
    whom = draw.sample(range(ranks), ranks - 1)
    when = sorted(draw.sample(range(1, STEPS), ranks - 1))
    how = draw.choices(["kill", "kill-later"], [1, 2], k=ranks - 1)
    return [f"step:{s}:{r}:{h}" for s, r, h in zip(when, whom, how, strict=True)]


def outcome(data: Path, folder: Path, ranks: int, faults: list[str], expected: object) -> str:
    """Return what came of a job: the longest time to go on, in ms, or what is wrong."""
    words = surviving(ranks)
    try:
        found, record = trained(data, folder, words, ranks, fault=",".join(faults))
    except AssertionError as error:
        say(f"{faults}: {error}")
        return "**lost**"
    if found != expected:
        return "**other bits**"
    parts = record["segments"][1:]
    # A rank that is killed when all is done is missed by nobody.
    return f"{1000 * max(part['mended_in'] for part in parts):.0f}" if parts else "-"


def main() -> None:
    """Do all of it, print what came of it, and write it for the documentation."""
    started = time.monotonic()
    launches = [(rank, ranks) for ranks in RANKS for rank in range(ranks)]
    cells: dict[tuple[str, int, int], str] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = prepare_digits(folder, (4,))
        alone = [sys.executable]
        expected = trained(data, folder / "alone", alone, 1, "--strategy", "single")[0]
        say(f"never killed: {short(expected)}")
        for place in (*PLACES, *SAVES):
            for rank, ranks in launches:
                if place in SAVES and rank:
                    continue  # rank 0 writes
                where = folder / f"{len(cells)}"
                cells[place, rank, ranks] = text = outcome(
                    data, where, ranks, [place.format(rank)], expected
                )
                say(f"{place.format(rank)} of {ranks}: {text}")
        walks = {}
        for seed in SEEDS:
            ranks = RANKS[1:][seed % 2]
            faults = walk(seed, ranks)
            walks[seed] = outcome(data, folder / f"walk-{seed}", ranks, faults, expected)
            say(f"walk {seed}: {', '.join(faults)}: {walks[seed]}")
    found = [*cells.values(), *walks.values()]
    fine = not any("**" in text for text in found)
    TABLE.write_text(page(launches, cells, walks))
    print(f"{len(found)} jobs; {time.monotonic() - started:.0f} s; see {TABLE}")
    sys.exit(0 if fine else 1)


def page(
    launches: list[tuple[int, int]],
    cells: dict[tuple[str, int, int], str],
    walks: dict[int, str],
) -> str:
    """Return the page that the documentation has."""
    head = ["killed", *(f"rank {rank} of {ranks}" for rank, ranks in launches)]
    lines = [head, ["---"] * len(head)]
    for place, words in (PLACES | SAVES).items():
        lines.append([words, *(cells.get((place, *launch), "") for launch in launches)])
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    lost = sum("**" in text for text in (*cells.values(), *walks.values()))
    times = [float(text) for text in (*cells.values(), *walks.values()) if text[0].isdigit()]
    return (
        "# Ranks that die while others go on\n\n"
        "Written by `make kills`; see [When things go wrong]"
        "(failures.md#ranks-that-die-while-others-go-on).\n"
        f"A run of {STEPS} steps (BatchNorm, dropout, an average of weights, a checkpoint every 5) "
        "under `mpirun --with-ft ulfm`, of which ranks are killed by `kill -9`. Its weights, "
        "BatchNorm's statistics, the optimizer's state, the history and the snapshots are compared "
        "with those of one process that was never killed.\n\n"
        f"{len(cells) + len(walks)} jobs, of which {lost} were lost or had other bits.\n\n"
        "Milliseconds from the error to going on; `-`: nobody missed it, for all was done.\n\n"
        f"{table}\n"
        f"{len(walks)} walks at random, in which all ranks but one die, one after the other, on 3 "
        f"and 4 ranks: {sum('**' not in text for text in walks.values())} survived. The longest "
        f"time to go on, of all jobs: {max(times):.0f} ms.\n"
    )


if __name__ == "__main__":
    main()
