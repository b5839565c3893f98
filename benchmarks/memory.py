"""How much memory does a strategy take? A model of 100 MiB, AdamW, S = 8.

    python -m benchmarks.memory [STRATEGY ...]

Starts itself for each strategy, twice on this machine: to train and save, and to go on from there.
Prints in MiB what rank 0 and the largest of the others had at most, over what a process has before
there is a model. `hybrid` has 4 ranks, `single` has 1, the others have 2.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch reads it

import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from lockstep import determinism
from lockstep import strategies as parallel
from lockstep.checkpoint.state import Progress, broadcast_state, fill, gather_state
from lockstep.checkpoint.store import Store
from lockstep.distributed import rendezvous
from lockstep.distributed.world import from_mpi
from lockstep.pipeline.config import Run
from lockstep.pipeline.optim import make_optimizer
from lockstep.pipeline.tasks.classification import Classification
from lockstep.pipeline.tasks.supervised import Normalize
from lockstep.strategies.task import MicroBatch
from tests.conftest import REPOSITORY, environment, mpirun

CPU = torch.device("cpu")
RANKS = {
    **{"single": 1, "sync_sgd": 2, "ddp": 2, "local_sgd": 2, "pipeline": 2, "hybrid": 4, "fsdp": 2}
}
SHARDS, IMAGES, WIDTH, LAYERS, STEPS = 8, 4, 1024, 25, 2


def main() -> None:
    print("MiB over a process without a model: rank 0, and the largest of the others")
    print(f"{'strategy':10} {'ranks':>5} {'training':>12} {'saving':>12} {'going on':>12}")
    for strategy in sys.argv[1:] or RANKS:
        with tempfile.TemporaryDirectory(dir=".") as folder:
            lines = [
                subprocess.run(
                    [*mpirun(RANKS[strategy]), "-m", "benchmarks.memory", what, strategy, folder],
                    cwd=REPOSITORY,
                    env=environment(),
                    check=True,
                    stdout=subprocess.PIPE,
                    text=True,
                ).stdout.strip()
                for what in ("train", "resume")
            ]
        print(f"{strategy:10} {RANKS[strategy]:5} {' '.join(lines)}", flush=True)


def measure(what: str, strategy: str, folder: Path) -> None:
    """Measure as one rank; rank 0 prints."""
    determinism.pin(1, CPU, reproducible=True)
    world = from_mpi()
    rendezvous.start(world, CPU)
    run = Run(
        **{"ranks": world.size, "strategy": strategy, "shards": SHARDS, "stages": 2},
        **{"batch": SHARDS * IMAGES, "optimizer": "adamw"},
    )
    store = Store(folder, {}, 2) if world.rank == 0 else None
    torch.manual_seed(0)
    base = resident("VmRSS")
    forget_peak()
    hidden = (m for _ in range(LAYERS) for m in (nn.Linear(WIDTH, WIDTH), nn.ReLU()))
    model = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(WIDTH, 10))
    found = broadcast_state(store.newest() if store else None)
    if found:
        fill(model, found.model)
    task = Classification(run, Normalize([0.5], [0.3], CPU), (1, 32, 32), CPU)
    made = parallel.make(run, model, task, partial(make_optimizer, run), world)
    if found:
        made.load(found.optimizer, found.strategy)
    peaks = [] if what == "train" else [resident("VmHWM") - base]
    if what == "train":
        draw = np.random.default_rng(0)
        for step in range(STEPS):
            images = draw.integers(0, 256, (IMAGES, 32, 32, 1), dtype=np.uint8)
            labels = draw.integers(0, 10, IMAGES)
            made.step(
                [MicroBatch(np.arange(IMAGES), images, labels, step, s) for s in made.shards], 1e-4
            )
        peaks.append(resident("VmHWM") - base)
        forget_peak()
        checkpoint = gather_state(made, Progress(step=STEPS, segments=[{}]), 0.0, world)
        if store and checkpoint:
            store.put(checkpoint)
            store.wait()
        peaks.append(resident("VmHWM") - base)
    everyones: list[list[int]] = [[]] * world.size
    dist.all_gather_object(everyones, peaks)
    if world.rank == 0:
        others = [max(some) for some in zip(*everyones[1:], strict=True)] or [0] * len(peaks)
        pairs = zip(peaks, others, strict=True)
        print(" ".join(f"{mine:5} {theirs or '':>6}" for mine, theirs in pairs))
    if store:
        store.close()
    rendezvous.stop()


def resident(which: str) -> int:
    """Return VmRSS or VmHWM, the peak of it, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(which):
            return int(line.split()[1]) // 1024
    raise LookupError(which)


def forget_peak() -> None:
    """Let VmHWM begin anew (see proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    measure(*sys.argv[1:3], Path(sys.argv[3])) if len(sys.argv) == 4 else main()
