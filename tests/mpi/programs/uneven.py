"""A program for any number of ranks: runs of 8 shards, which ranks need not share evenly."""

import sys
from pathlib import Path
from typing import Any

from lockstep.distributed.world import discover
from lockstep.pipeline.config import Run
from lockstep.pipeline.stages.train import train
from lockstep.testing import faults

BUSY = {"model": "tests.mpi.models:busy", "optimizer": "adamw", "clip": 0.5, "epochs": 2}
PLAIN = {"model": "linear", "optimizer": "sgd", "lr": 0.05, "epochs": 1}
CASES: dict[str, dict[str, Any]] = {
    "tree": BUSY,
    "local_sgd": BUSY | {"strategy": "local_sgd", "sync_every": 3},
    "plain": PLAIN,
    "fast": PLAIN | {"reduction": "fast"},
    "ddp": PLAIN | {"strategy": "ddp"},
}


def main(data: Path, folder: Path, stop: int, *cases: str) -> None:
    """Train cases; kill rank 0 before the step `stop`, if that is not 0."""
    ranks = discover().size
    for case in cases:
        common = {"shards": 8, "batch": 64, "snapshots": 1, "checkpoint_every": "5 steps"}
        run = Run(ranks=ranks, oversubscribe=True, **common, **CASES[case])
        faults.WANTED = f"step:{stop}:0:kill" if stop else ""
        train(run, data, data / "8" / "shards.csv", folder / case)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
