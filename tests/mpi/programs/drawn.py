"""A program for any number of ranks: train many runs, and write down what came of each.

Starting processes takes longer than training a tiny model.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist

from lockstep.distributed.world import discover
from lockstep.errors import UserError
from lockstep.pipeline.config import Run
from lockstep.pipeline.stages.train import train
from lockstep.testing import faults


def train_drawn(runs: list[tuple[str, int | None, dict[str, Any]]], data: Path, root: Path) -> None:
    """Train each run, and leave its record, or the line that refused it, below `root`.

    Args:
        runs: the folder of results, before which step an exception ends it (None: it is trained to
            its end), and the run's values.
        data: the prepared dataset.
        root: what the folders are below.
    """
    faults.POISON = True
    world = discover()
    for name, stop, values in runs:
        faults.WANTED = "" if stop is None else f"step:{stop}:{world.rank}:raise"
        run = Run(ranks=world.size, oversubscribe=True, **values)
        try:
            table = data / str(run.shards) / "shards.csv"
            training = train(run, data, table, root / name)
            found: dict[str, Any] = training.model_dump(mode="json") if training else {}
        except UserError as error:
            found = {"refused": str(error)}
        except Exception as error:  # by all ranks alike, or the others wait until the timeout
            found = {"error": f"{type(error).__name__}: {error}"}
        if dist.is_initialized():  # all ranks were refused, or failed, alike
            dist.destroy_process_group()
        if world.rank == 0 and stop is None:
            (root / f"{name}.json").write_text(json.dumps(found))
        if world.comm is not None:
            world.comm.Barrier()


if __name__ == "__main__":
    train_drawn(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]), Path(sys.argv[3]))
