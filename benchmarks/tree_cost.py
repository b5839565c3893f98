"""What the fixed order costs: gradients by shard along the tree, against all shards in one batch.

    python -m benchmarks.tree_cost [RANKS ...]

Starts itself with 1, 2 and 4 ranks (or as many as asked for) of one thread on this machine. The
small CNN on random images, 4 shards, both ways in turns. Prints for several numbers of images per
shard how much longer a step along the tree takes, by the median of the turns.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch reads it

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from lockstep import determinism
from lockstep import strategies as parallel
from lockstep.distributed import rendezvous
from lockstep.distributed.world import World, from_mpi
from lockstep.pipeline.config import Run
from lockstep.pipeline.data.arrays import Part
from lockstep.pipeline.data.batches import Batches
from lockstep.pipeline.models import build
from lockstep.pipeline.optim import make_optimizer
from lockstep.pipeline.tasks.classification import Classification
from lockstep.pipeline.tasks.supervised import Normalize
from tests.conftest import REPOSITORY, environment, mpirun

SHARDS, IMAGES, TURNS = 4, 4096, 15


def main() -> None:
    for ranks in map(int, sys.argv[1:] or ["1", "2", "4"]):
        subprocess.run(
            [*mpirun(ranks), "-m", "benchmarks.tree_cost", "rank"],
            cwd=REPOSITORY,
            env=environment(),
            check=True,
        )


def measure() -> None:
    """Measure as one rank; rank 0 prints."""
    device = torch.device("cpu")
    determinism.pin(1, device, reproducible=True)
    world = from_mpi()
    backend = rendezvous.start(world, device)
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (IMAGES, 28, 28, 1), np.uint8)
    part = Part(images, draw.integers(0, 10, IMAGES))
    members = np.array_split(np.arange(IMAGES), SHARDS)
    for per_shard in (16, 32, 64, 128, 256):
        seconds: dict[str, list[float]] = {"tree": [], "fast": []}
        epochs = {
            reduction: make_epoch(
                Run(ranks=world.size, shards=SHARDS, batch=per_shard * SHARDS, reduction=reduction),
                part,
                members,
                device,
                world,
            )
            for reduction in seconds
        }
        for _ in range(TURNS):
            for reduction, epoch in epochs.items():
                world.comm.Barrier()
                started = time.perf_counter()
                epoch()
                seconds[reduction].append(time.perf_counter() - started)
        tree, fast = (statistics.median(times[2:]) for times in seconds.values())
        if world.rank == 0:
            print(
                f"{world.size} ranks ({backend}), {per_shard:4} images a shard: "
                f"the tree takes {tree / fast - 1:+.1%}",
                flush=True,
            )
    rendezvous.stop()


def make_epoch(
    run: Run, part: Part, members: list[np.ndarray], device: torch.device, world: World
) -> Callable[[], None]:
    """Return a function that trains for one epoch."""
    batches = Batches(part, members, run)
    model = build(run.model, (1, 28, 28), 10).to(memory_format=torch.channels_last)
    task = Classification(run, Normalize([0.5], [0.3], device), (1, 28, 28), device)
    strategy = parallel.make(run, model, task, partial(make_optimizer, run), world)

    def epoch() -> None:
        torch.use_deterministic_algorithms(parallel.keeps_bits(run))  # as `train` has it
        for index in range(batches.steps_per_epoch):
            strategy.step([batches.get(0, index, shard) for shard in strategy.shards], run.lr)

    return epoch


if __name__ == "__main__":
    measure() if sys.argv[1:] == ["rank"] else main()
