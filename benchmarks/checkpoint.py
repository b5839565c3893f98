"""How long does a checkpoint hold the training up? ResNet-50 with AdamW, one process.

    python -m benchmarks.checkpoint

Prints the pause beside what a plain copy of the same tensors takes, what writing them takes, which
a thread does, and how much longer a step lasts while it does: ratios of one run.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from lockstep import strategies as parallel
from lockstep.checkpoint.state import Progress, gather_state
from lockstep.checkpoint.store import Store
from lockstep.distributed.world import World
from lockstep.pipeline.config import Run
from lockstep.pipeline.models import build
from lockstep.pipeline.optim import make_optimizer
from lockstep.pipeline.tasks.classification import Classification
from lockstep.pipeline.tasks.supervised import Normalize
from lockstep.strategies.task import MicroBatch

CPU = torch.device("cpu")
REPEATS = 5


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    world = World(0, 1, 0, 1, "python")
    run = Run(strategy="single", ranks=1, shards=1, batch=8, model="resnet50", optimizer="adamw")
    model = build(run.model, (3, 32, 32), 10, 0).to(memory_format=torch.channels_last)
    task = Classification(run, Normalize([0.5] * 3, [0.3] * 3, CPU), (3, 32, 32), CPU)
    strategy = parallel.make(run, model, task, partial(make_optimizer, run), world)
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    batch = [MicroBatch(np.arange(8), images, draw.integers(0, 10, 8), 0, 0)]
    progress = Progress(segments=[{"hosts": [], "bytes_sent": []}])

    def step() -> float:
        started = time.perf_counter()
        strategy.step(batch, 1e-3)
        return time.perf_counter() - started

    for _ in range(3):
        step()
    pauses, copies, writes, alone, beside = [], [], [], [], []
    with tempfile.TemporaryDirectory(dir=".") as folder:
        store = Store(Path(folder), {}, 2)
        for _ in range(REPEATS):
            kept = [*model.state_dict().values()]
            kept += [v for one in strategy.optimizer_state().values() for v in one.values()]
            started = time.perf_counter()
            copied = [tensor.clone() for tensor in kept]
            copies.append(time.perf_counter() - started)
            size = sum(t.numel() * t.element_size() for t in copied)
            del copied
            progress.step += 1
            started = time.perf_counter()
            state = gather_state(strategy, progress, 0.0, world)
            assert state is not None
            store.put(state)
            pauses.append(time.perf_counter() - started)
            del state
            while store.busy:
                beside.append(step())
            writes.append(time.perf_counter() - started)
            store.wait()
            alone += [step() for _ in range(5)]
        store.close()
    pause, copy, write = map(statistics.median, (pauses, copies, writes))
    print(f"a checkpoint of {size / 1e6:,.0f} MB")
    print(f"the training waits {pause * 1e3:,.0f} ms: {pause / copy:.2f} x a copy in memory")
    print(f"the thread writes for {write * 1e3:,.0f} ms: {write / pause:.1f} x as long")
    slower = statistics.median(beside) / statistics.median(alone)
    print(f"a step meanwhile takes {slower:.2f} x as long as otherwise")


if __name__ == "__main__":
    main()
