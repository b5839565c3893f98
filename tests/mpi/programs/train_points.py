"""A program for any number of ranks: train and evaluate many runs in one process, by command line.

Starting processes takes longer than training a tiny model; and a run must not depend on what the
same processes did before it.
"""

import json
import shutil
import sys
from pathlib import Path

from lockstep.distributed.world import discover
from lockstep.pipeline.cli import main
from lockstep.testing import faults


def train_points(commands: dict[str, list[str]], data: str, folder: Path) -> None:
    """Do `lockstep train` with the flags of each point, and `lockstep evaluate`.

    Args:
        commands: the flags of `train` by the point's name.
        data: the prepared dataset.
        folder: gets a folder of results for each point.
    """
    faults.POISON = True
    for name, flags in commands.items():
        results = folder / name
        main(["train", "--data", data, "--output", str(results), *flags])
        world = discover()
        if world.rank == 0:  # one snapshot is its own average
            shutil.copy(results / "model.safetensors", results / "averaged.safetensors")
            record = json.loads((results / "train.json").read_text())
            same = {key: record[key] for key in ("model_sha256", "snapshots_sha256")}
            (results / "averaged.json").write_text(json.dumps(same))
        if world.comm is not None:
            world.comm.Barrier()  # before rank 0 came here, train.json was not written
        ranks = str(world.size)
        main(["evaluate", "--results", str(results), "--data", data, "--ranks", ranks])


if __name__ == "__main__":
    train_points(json.loads(Path(sys.argv[1]).read_text()), sys.argv[2], Path(sys.argv[3]))
