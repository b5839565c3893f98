"""A program for two ranks on one host: launches in which one rank has something of its own.

Each rank works in a folder of its own name, which has `data`, `shards.csv` and `own.py`.
"""

import contextlib
import dataclasses
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import lockstep.pipeline.stages.train as stage
from lockstep import provenance, session
from lockstep.checkpoint.checkpointer import Checkpointer
from lockstep.distributed import rendezvous
from lockstep.distributed.world import discover
from lockstep.errors import UserError
from lockstep.pipeline.config import Run
from lockstep.pipeline.data.manifest import check_files
from lockstep.pipeline.stages.train import SLOWEST_DISK, train
from lockstep.provenance import CAPS

DATA, SHARDS = Path("data"), Path("shards.csv")
BUSY = {"model": "tests.mpi.models:busy"}
# Of each case: how the run is configured, what rank 1 has otherwise, and the data.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], Path, Path]] = {
    "flags": ({}, {"backend": "gloo"}, DATA, SHARDS),
    "data": ({}, {}, Path("inverted"), SHARDS),
    "mean": ({}, {}, Path("brighter"), SHARDS),
    "files": ({}, {}, Path("damaged-0"), SHARDS),
    "slow files": ({"timeout": 3}, {}, DATA, SHARDS),
    "files of another host": ({}, {}, Path("damaged-1"), SHARDS),
    "partition": ({}, {}, DATA, Path("other.csv")),
    "caps": ({}, {}, DATA, SHARDS),
    "code": ({"model": "own:make"}, {}, DATA, SHARDS),
    "weights": ({"model": "tests.mpi.models:other_on_rank_1"}, {}, DATA, SHARDS),
    "alike": (BUSY, {}, DATA, SHARDS),
    "momentum": (BUSY, {}, DATA, SHARDS),
    "momentum of ddp": (BUSY | {"strategy": "ddp"}, {}, DATA, SHARDS),
    "momentum of hybrid": (BUSY | {"strategy": "hybrid", "stages": 1}, {}, DATA, SHARDS),
}


@contextlib.contextmanager
def circumstances(name: str, rank: int) -> Iterator[None]:
    """Let the environment, a bit of rank 0's optimizer, or rank 1's host be other."""
    check = Checkpointer._check

    def strike(self: Checkpointer, step: int) -> None:
        kept = next(iter(self.strategy.optimizer.state.values()))  # type: ignore[attr-defined]
        kept["exp_avg"].view(-1)[:1].view(torch.int32).bitwise_xor_(1)
        check(self, step)

    if name == "caps" and rank == 1:
        os.environ[CAPS[0]] = "avx2"
    if name.startswith("momentum") and rank == 0:
        Checkpointer._check = strike  # type: ignore[method-assign]
    if name == "slow files":  # by rank 0, as long as a disk of 20 kB/s takes for them, or less
        stage.SLOWEST_DISK = 20e3
        if rank == 0:
            stage.check_files = lambda *what: (
                time.sleep(4),
                check_files(*what),
            )
    if name == "files of another host":  # as far as files go: each rank is the first of its own
        session.discover = lambda *how: dataclasses.replace(discover(*how), local_rank=0)
    yield
    session.discover = discover
    stage.check_files, stage.SLOWEST_DISK = (
        check_files,
        SLOWEST_DISK,
    )
    os.environ.pop(CAPS[0], None)
    Checkpointer._check = check  # type: ignore[method-assign]


def main(folder: Path) -> None:
    """Try each case, and write what it was refused with on this rank."""
    world = discover()
    os.chdir(folder / str(world.rank))
    if world.rank == 1:  # what does not compute may be of any version
        versions = provenance.versions()
        provenance.versions = lambda: versions | {"snakemake": "0", "pandas": "0"}
    said = {}
    for name, (how, other, data, shards) in CASES.items():
        values = {"ranks": 2, "oversubscribe": True, "epochs": 1, "snapshots": 1, "batch": 512}
        run = Run(**values | how | (other if world.rank == 1 else {}))
        with circumstances(name, world.rank):
            try:
                train(run, data.resolve(), shards.resolve(), folder / name)  # in unlike folders
                said[name] = ""
            except UserError as error:
                said[name] = str(error)
                rendezvous.leave()
    (folder / f"said-{world.rank}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
