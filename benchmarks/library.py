"""What the same bits cost in a loop of one's own: lockstep's against plain torch's, and DDP's.

    python -m benchmarks.library [MODEL ...]

Trains a small CNN, a tiny GPT and a ResNet-18 on made-up data: on one process, and on 2 ranks by
torchrun over Gloo, one thread each. All loops run in the same processes in turns, so that whatever
else the machine does meets them alike; prints the medians of milliseconds per step, and of the
ratios within a turn. `whole` is plain torch's usual loop, a rank's samples as one batch (on 2 ranks
DistributedDataParallel); `accumulated` is plain torch with lockstep's micro-batches.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch reads it

import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
import torchvision
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import lockstep
from tests.conftest import REPOSITORY, environment

TURNS, WARM = 9, 2  # the first turns do not count


class GPT(nn.Module):
    """Two layers, 64 wide, 4 heads, 256 tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(256, 64), nn.Linear(64, 256)
        layer = nn.TransformerEncoderLayer(64, 4, 256, 0.0, "gelu", batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(128))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(self.tokens(x), self.mask, is_causal=True)).flatten(0, 1)


def cnn() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(32 * 7 * 7, 10)),
    )


def resnet() -> nn.Module:
    return torchvision.models.resnet18(num_classes=10)


@dataclass(frozen=True)
class Case:
    """A model, the shape of an input, the global batch, and how many steps a turn has."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    batch: int
    steps: int
    shards: int = 4


CASES = {
    "cnn": Case(cnn, (1, 28, 28), 128, 4),
    "gpt": Case(GPT, (128,), 32, 2),
    "resnet18": Case(resnet, (3, 32, 32), 64, 1),
}


def data(case: Case, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs and targets: images and classes, or tokens and tokens."""
    draw = torch.Generator().manual_seed(0)
    if len(case.shape) == 1:
        x = torch.randint(256, (count, *case.shape), generator=draw)
        return x, x.roll(-1, 1)
    x = torch.randn(count, *case.shape, generator=draw)
    return x, torch.randint(10, (count, 1), generator=draw)


Step = Callable[[], None]


def by_lockstep(session: lockstep.Session, case: Case, folder: str) -> Iterator[None]:
    """Do a step each time it is asked."""
    samples = case.batch * case.steps * TURNS
    x, y = data(case, samples)
    model = session.build(case.make)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    run = session.run(model, optimizer, folder, checkpoint_every="9 h")
    for step in run.steps(samples, case.batch, epochs=1):
        for shard in step:
            targets = y[shard.ids].flatten()
            loss = F.cross_entropy(model(x[shard.ids]), targets, reduction="sum")
            shard.backward(loss, items=len(targets))
        optimizer.step()
        yield


def by_torch(session: lockstep.Session, case: Case, parts: int) -> Iterator[None]:
    """Do a step of plain torch's each time it is asked, a rank's samples in so many batches."""
    mine = case.batch // session.size
    x, y = data(case, case.batch * case.steps)
    model = session.build(case.make)
    wrapped = DistributedDataParallel(model) if session.size > 1 else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    while True:
        for start in range(session.rank * mine, len(x) - mine + 1, case.batch):
            optimizer.zero_grad()
            for part in range(parts):
                some = slice(start + part * (mine // parts), start + (part + 1) * (mine // parts))
                last = part == parts - 1 or session.size == 1
                with contextlib.nullcontext() if last else wrapped.no_sync():
                    (F.cross_entropy(wrapped(x[some]), y[some].flatten()) / parts).backward()
            optimizer.step()
            yield


def measure(names: list[str]) -> None:
    """Measure as one rank; rank 0 prints."""
    for name in names:
        case = CASES[name]
        with lockstep.init(shards=case.shards) as session, tempfile.TemporaryDirectory() as folder:
            loops = {
                "lockstep": by_lockstep(session, case, folder),
                "whole": by_torch(session, case, 1),
                "accumulated": by_torch(session, case, case.shards // session.size),
            }
            seconds: dict[str, list[float]] = {loop: [] for loop in loops}
            for _ in range(TURNS):
                for loop, steps in loops.items():
                    torch.distributed.barrier()
                    # Plain torch has the faster kernels that lockstep refuses, where there are any.
                    torch.use_deterministic_algorithms(loop == "lockstep")
                    started = time.perf_counter()
                    for _ in range(case.steps):
                        next(steps)
                    seconds[loop].append((time.perf_counter() - started) / case.steps)
            next(loops["lockstep"], None)  # the last step was done; the run is ended
            if session.rank == 0:
                print(_line(name, session.size, {k: v[WARM:] for k, v in seconds.items()}))


def _line(name: str, ranks: int, seconds: dict[str, list[float]]) -> str:
    own = seconds["lockstep"]
    text = f"{name:9} {ranks} rank{'s' if ranks > 1 else ' '}"
    for loop, times in seconds.items():
        text += f"   {loop} {statistics.median(times) * 1e3:7.1f} ms"
        if loop != "lockstep":
            ratios = [mine / its for mine, its in zip(own, times, strict=True)]
            text += f" (lockstep takes x {statistics.median(ratios):.2f})"
    return text


def main() -> None:
    names = sys.argv[1:] or list(CASES)
    if os.environ.get("LOCKSTEP_BENCHMARK"):
        measure(names)
        return
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for launcher in ([], torchrun):
        subprocess.run(
            [sys.executable, *launcher, "-m", "benchmarks.library", *names],
            cwd=REPOSITORY,
            env=environment() | {"LOCKSTEP_BENCHMARK": "1"},
            check=True,
        )


if __name__ == "__main__":
    main()
