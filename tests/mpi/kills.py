"""Killing runs and going on: what the tests and the whole matrix share.

A run is killed again and again, and each launch goes on from what the last one left. Faults that a
rank can have by itself are those of `lockstep.testing.faults`. Where another rank is to die while
rank 0 is inside a save, rank 0 hangs there, and the other one is killed from here.
"""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import psutil

from tests.conftest import REPOSITORY, environment, mpirun
from tests.crew import run_shared
from tests.mpi.matrix import PARTS

EVERY = 5  # steps from one checkpoint to the next
POINTS = ("first step", "mid-epoch", "written", "synced", "renamed")
SAVES = POINTS[2:]

# 22 steps an epoch, with everything that usually makes a result depend on how it was computed.
FLAGS = [
    *("--model", "tests.mpi.models:busy", "--shards", "4", "--batch", "64", "--flip"),
    *("--optimizer", "adamw", "--weight-decay", "0.01", "--clip", "0.5"),
    *("--epochs", "6", "--snapshots", "6", "--checkpoint-every", f"{EVERY} steps"),
]
STEPS = 6 * 22


class Kill(NamedTuple):
    """What is killed (`rank 1`, `mpirun`), when, and among how many ranks."""

    point: str
    who: str
    ranks: int


class Ended(NamedTuple):
    """How a launch ended."""

    status: int
    stderr: str


def launch(data: Path, output: Path, ranks: int, fault: str = "", kill: int | None = None) -> Ended:
    """Train until the end, or the fault.

    Args:
        fault: as in LOCKSTEP_FAULT.
        kill: the rank to kill once the fault, inside a save, has come.
    """
    words = [*mpirun(ranks), "-m"] if ranks > 1 else [sys.executable, "-m"]
    words += ["lockstep", "train", "--data", str(data), "--oversubscribe", "--ranks", str(ranks)]
    words += ["--partition", str(data / "4" / "shards.csv"), "--output", str(output), *FLAGS]
    if not fault or fault.endswith("usr1"):
        done = run_shared(["env", f"LOCKSTEP_FAULT={fault}", *words], REPOSITORY)
        return Ended(done.returncode, done.stderr)
    log = output.with_suffix(".log")
    with log.open("w") as stderr:
        job = psutil.Popen(
            words,
            cwd=REPOSITORY,
            env=environment() | {"LOCKSTEP_FAULT": fault},
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )
    started, children = time.monotonic(), set()
    try:
        while job.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                children.update(job.children())
            if kill is not None and is_inside(output, fault):
                os.kill(pid_of(kill, children), signal.SIGKILL)
                kill = None
            assert time.monotonic() - started < 300, f"{fault}: still running\n{log.read_text()}"
            time.sleep(0.02)
        _, alive = psutil.wait_procs(children, timeout=20)
        assert not alive, f"{fault}: the launcher is gone, and {alive} is left"
    finally:
        for process in (job, *children):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    return Ended(job.wait(), log.read_text())


def is_inside(output: Path, fault: str) -> bool:
    """Return whether the save that a fault names has come as far as that."""
    point, step, *_ = fault.split(":")
    name = f"step-{int(step):08}" if point == "renamed" else f".step-{int(step):08}"
    return any(output.glob(f"checkpoints/*/{name}/manifest.json"))


def pid_of(rank: int, processes: set[psutil.Process]) -> int:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.environ().get("OMPI_COMM_WORLD_RANK") == str(rank):
                return process.pid
    raise AssertionError(f"no process is rank {rank}")


def saved(output: Path) -> int:
    """Return the step of the newest checkpoint, or 0."""
    return max((int(p.name[5:]) for p in output.glob("checkpoints/*/step-*")), default=0)


def resumed(stderr: str) -> int:
    """Return the step that a launch says it went on after, or 0."""
    found = re.search(r"going on after step (\d+)", stderr)
    return int(found[1]) if found else 0


def survive(kill: Kill, data: Path, output: Path) -> None:
    """Train on until the kill, and see that it lost no more than it may."""
    before = saved(output)
    point, step = {
        "first step": ("step", before),
        "mid-epoch": ("step", before + 2 * EVERY + 2),
    }.get(kill.point, (kill.point, before + 2 * EVERY))
    if kill.who == "mpirun":
        ended = launch(data, output, kill.ranks, f"{point}:{step}:0:kill-launcher")
    elif kill.point in SAVES and kill.who != "rank 0":
        ended = launch(data, output, kill.ranks, f"{point}:{step}:0:hang", int(kill.who[5:]))
    else:
        ended = launch(data, output, kill.ranks, f"{point}:{step}:{kill.who[5:]}:kill")
    assert ended.status != 0, ended.stderr
    assert not (output / "train.json").exists()
    assert resumed(ended.stderr) == before, ended.stderr
    assert "damaged" not in ended.stderr, ended.stderr
    # The thread that writes may not have come as far as the training; in a save it is known.
    possible = {
        "first step": {before},
        "mid-epoch": {before, before + EVERY, before + 2 * EVERY},
        "renamed": {step},
    }.get(kill.point, {step - EVERY})
    assert saved(output) in possible, ended.stderr


def finish(data: Path, output: Path, ranks: int) -> dict[str, str | None]:
    """Train to the end; return the hashes of all that a run leaves."""
    before = saved(output)
    ended = launch(data, output, ranks)
    assert ended.status == 0, ended.stderr
    assert resumed(ended.stderr) == before, ended.stderr
    record = json.loads((output / "train.json").read_text())
    parts = [(part["first_step"], part["last_step"]) for part in record["segments"]]
    assert [first for first, _ in parts[1:]] == [last for _, last in parts[:-1]]
    assert (parts[0][0], parts[-1][1]) == (0, STEPS)
    return {part: record[key] for part, key in PARTS.items()}


class Walk(NamedTuple):
    """A run in pieces: how each launch ended, as `P=2 usr1 after 17`, and what the run left."""

    pieces: list[str]
    hashes: dict[str, str | None]


def walk(seed: int, ranks: tuple[int, ...], data: Path, output: Path) -> Walk:
    """Train with ten interruptions at random steps, on random numbers of ranks out of `ranks`.

    Raises:
        AssertionError: a launch went on from another step than the last one had saved, or ended
            otherwise than it should.
    """
    draw = random.Random(seed)
    pieces: list[str] = []
    while len(pieces) < 10:
        before, here, action = saved(output), draw.choice(ranks), draw.choice(("usr1", "kill"))
        fault = f"step:{before + draw.randint(0, 6)}:{draw.randrange(here)}:{action}"
        ended = launch(data, output, here, fault)
        assert resumed(ended.stderr) == before, ended.stderr
        if ended.status == 0:  # the signal came so late that it was over
            break
        assert action == "kill" or ended.status == 75, ended.stderr
        pieces.append(f"P={here} {action} after {saved(output)}")
    return Walk(pieces, finish(data, output, draw.choice(ranks)))
