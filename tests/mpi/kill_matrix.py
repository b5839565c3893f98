"""The kill matrix: every place x every rank and mpirun, torn writes, and walks at random.

`python -m tests.mpi.kill_matrix` (`make kills`) kills runs through real mpirun, goes on from what
they left, compares the end with a run never killed, and writes docs/kill-matrix.md.
"""

import contextlib
import io
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from lockstep import tensors as state
from lockstep.checkpoint.checkpointer import Checkpoint
from lockstep.checkpoint.store import Store
from tests.conftest import REPOSITORY, prepare_digits
from tests.damage import cut_short, flipped
from tests.mpi.kills import EVERY, FLAGS, POINTS, STEPS, Kill, Walk, finish, survive, walk
from tests.mpi.matrix import say, short

TABLE = REPOSITORY / "docs" / "kill-matrix.md"

RANKS = (2, 4)
SEEDS = (0, 1)
# Of each file, so many places are damaged, evenly spread; of a small one all.
PLACES = 400


def all_kills() -> list[Kill]:
    """Return every kill, those of a point one after the other with changing numbers of ranks."""
    return [
        Kill(point, who, ranks)
        for point in POINTS
        for number in range(max(RANKS))
        for ranks in RANKS
        for who in ([f"rank {number}"] if number < ranks else []) + ["mpirun"] * (number == 0)
    ]


def kill_all(
    kills: list[Kill], data: Path, folder: Path, expected: dict[str, str | None]
) -> Iterator[tuple[Kill, str]]:
    """Do the kills of one point to one run, one after the other; yield what came of each."""
    output, found = folder / "run", {}
    for kill in kills:
        try:
            survive(kill, data, output)
            found[kill] = "survived"
        except AssertionError as error:
            say(f"{kill}: {error}")
            found[kill] = "**lost**"
            shutil.rmtree(output, ignore_errors=True)
    if finish(data, output, 1) != expected:
        say(f"{kills[0].point}: other bits than those of a run never killed")
        found = dict.fromkeys(kills, "**lost**")
    yield from found.items()


def tear(root: Path) -> tuple[int, int]:
    """Damage every file of a run's checkpoints at many places, one after the other.

    Returns:
        How often, and how often something else was loaded than a whole checkpoint.
    """
    (folder,) = root.glob("*/")  # beside it lies a lock
    about = json.loads((folder / "about.json").read_text())
    store = Store(root, about, 2)
    assert store.folder == folder
    whole = {}
    for path in sorted(folder.glob("step-*"), reverse=True):
        whole[digest(store.newest())] = path.name
        path.rename(path.with_name(f"hidden-{path.name}"))
    for path in folder.glob("hidden-*"):
        path.rename(path.with_name(path.name.removeprefix("hidden-")))
    tried = lost = 0
    for path in (*folder.glob("step-*/*"), *folder.glob("snapshots/*")):
        size = path.stat().st_size
        for place in range(0, size, max(1, size // PLACES)):
            for damage in (cut_short(path, place), flipped(path, place, 1 << place % 8)):
                with damage, contextlib.redirect_stderr(io.StringIO()):
                    found = store.newest()
                tried += 1
                lost += found is not None and digest(found) not in whole
    store.close()
    return tried, lost


def digest(checkpoint: Checkpoint | None) -> str:
    assert checkpoint is not None
    return state.digest([vars(checkpoint.progress), *list(vars(checkpoint).values())[1:]])


def page(
    found: dict[Kill, str], walks: dict[int, Walk | None], torn: tuple[int, int], same: int
) -> str:
    """Return the page that the documentation has.

    Args:
        walks: by their seeds; None where one was lost.
        torn: how many torn writes were tried, and lost.
        same: how many walks ended with the bits of a run never killed.
    """
    lost = sum("lost" in text for text in found.values())
    launches = [(who, ranks) for ranks in RANKS for who in (*ranks_of(ranks), "mpirun")]
    head = ["killed", *(f"{who} of {ranks}" for who, ranks in launches)]
    head = [title.replace("mpirun of", "mpirun, P =") for title in head]
    lines = [head, ["---"] * len(head)]
    for point in POINTS:
        cells = [found.get(Kill(point, *launch), "") for launch in launches]
        lines.append([WORDS[point], *cells])
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    pieces = "".join(
        f"- seed {seed}: {'; '.join(one.pieces) if one else '**lost**'}\n"
        for seed, one in walks.items()
    )
    interruptions = sum(len(one.pieces) for one in walks.values() if one)
    return (
        "# The kill matrix\n\n"
        "Written by `make kills`; see [When things go wrong](failures.md).\n"
        f"A run of {STEPS} steps (BatchNorm, dropout, AdamW, a checkpoint every {EVERY} steps) is "
        "started by `mpirun`, and killed by `kill -9`; the next launch, mostly with another number "
        "of ranks, goes on and is killed at the next place. At the end of each row one process "
        "finishes, and its weights, BatchNorm's statistics, the optimizer's state, the history and "
        "the snapshots are compared with those of a run never killed.\n\n"
        "| faults | tried | survived | lost |\n| --- | --- | --- | --- |\n"
        f"| kills | {len(found)} | {len(found) - lost} | {lost} |\n"
        f"| interruptions in walks at random | {interruptions} | "
        f"{interruptions if same == len(walks) else 0} | {len(walks) - same} |\n"
        f"| files of checkpoints cut short or with a bit flipped | {torn[0]} | {torn[0] - torn[1]} "
        f"| {torn[1]} |\n\n"
        "`survived` says that the next launch went on from the newest checkpoint that was whole, "
        "the row's end had the same bits, and after a kill of `mpirun` no rank was left.\n\n"
        f"{table}\n"
        "## Walks at random\n\n"
        "Ten interruptions of one run, at a random step on 1, 2 or 4 ranks: `usr1` is told to "
        "stop, `kill` is `kill -9` of a random rank. What is given is the step that was saved.\n\n"
        f"{pieces}\n"
        "## Torn writes\n\n"
        f"Each file of the checkpoints kept, and of the snapshots, is cut short at {PLACES} "
        "places, and has a bit flipped there. Something is loaded only where it is a whole "
        "checkpoint to the bit: this one, or the one before.\n"
    )


WORDS = {
    "first step": "before its first step",
    "mid-epoch": "in the middle of an epoch",
    "written": "in a save: files written",
    "synced": "in a save: files synced, not renamed",
    "renamed": "in a save: renamed",
}


def ranks_of(ranks: int) -> list[str]:
    return [f"rank {number}" for number in range(ranks)]


def main() -> None:
    """Do all kills, print what came of them, and write it for the documentation."""
    started = time.monotonic()
    found: dict[Kill, str] = {}
    walks: dict[int, Walk | None] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = prepare_digits(folder, (4,))
        expected = finish(data, folder / "never", 1)
        say(f"never killed: {short(expected)}; {' '.join(FLAGS)}")
        torn = tear(folder / "never" / "checkpoints")
        say(f"{torn[0]} torn writes, {torn[1]} loaded")
        for point in POINTS:
            kills = [kill for kill in all_kills() if kill.point == point]
            (folder / point).mkdir()
            for kill, text in kill_all(kills, data, folder / point, expected):
                found[kill] = text
                say(f"{kill.point}, {kill.who} of {kill.ranks}: {text}")
        for seed in SEEDS:
            try:
                walks[seed] = walk(seed, (1, *RANKS), data, folder / f"walk-{seed}")
                say(f"walk {seed}: {walks[seed]}")
            except AssertionError as error:
                say(f"walk {seed}: {error}")
                walks[seed] = None
    same = sum(one is not None and one.hashes == expected for one in walks.values())
    TABLE.write_text(page(found, walks, torn, same))
    fine = same == len(walks) and not torn[1] and "**lost**" not in found.values()
    print(f"{len(found)} kills; {time.monotonic() - started:.0f} s; see {TABLE}")
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
