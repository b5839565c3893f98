"""What the fixed order costs: gradients by shard along the tree, against all shards in one batch.

    python benchmarks/tree_cost.py

One process, one thread, the small CNN on random images, both ways in turns. Prints for several
numbers of images per shard how much longer a step along the tree takes, by the median of the turns.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch reads it

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.distributed as dist

from lockstep import parallel, runtime
from lockstep.comm.world import World
from lockstep.config import Run
from lockstep.data.arrays import Part
from lockstep.data.batches import Batches
from lockstep.models import build
from lockstep.objective import CrossEntropy, Normalize

SHARDS, IMAGES, TURNS = 4, 4096, 15


def main() -> None:
    device = torch.device("cpu")
    runtime.pin(1, device, reproducible=True)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (IMAGES, 28, 28, 1), np.uint8)
    part = Part(images, draw.integers(0, 10, IMAGES))
    members = np.array_split(np.arange(IMAGES), SHARDS)
    for per_shard in (16, 32, 64, 128, 256):
        seconds: dict[str, list[float]] = {}
        steps = {
            reduction: make_epoch(
                Run(ranks=1, shards=SHARDS, batch=per_shard * SHARDS, reduction=reduction),
                part,
                members,
                device,
            )
            for reduction in ("tree", "fast")
        }
        for _ in range(TURNS):
            for reduction, epoch in steps.items():
                started = time.perf_counter()
                epoch()
                seconds.setdefault(reduction, []).append(time.perf_counter() - started)
        tree, fast = (statistics.median(seconds[name][2:]) for name in ("tree", "fast"))
        print(f"{per_shard:4} images a shard: the tree takes {tree / fast - 1:+.1%}", flush=True)


def make_epoch(
    run: Run, part: Part, members: list[np.ndarray], device: torch.device
) -> Callable[[], None]:
    """Return a function that trains for one epoch."""
    batches = Batches(part, members, run.batch, run.seed)
    model = build(run.model, (1, 28, 28), 10).to(memory_format=torch.channels_last)
    objective = CrossEntropy(run, Normalize([0.5], [0.3], device), device)
    strategy = parallel.make(run, model, objective, World(0, 1, 0, 1, "python"), (1, 28, 28))

    def epoch() -> None:
        torch.use_deterministic_algorithms(parallel.keeps_bits(run))  # as `train` has it
        for index in range(batches.steps_per_epoch):
            strategy.step([batches.get(0, index, shard) for shard in range(run.shards)], run.lr)

    return epoch


if __name__ == "__main__":
    main()
