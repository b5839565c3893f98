"""A program for any number of ranks: train several runs, each to its end or until all ranks stop.

Starting processes takes longer than training a tiny model: here one launch is a part of many runs.
"""

import json
import sys
from pathlib import Path

import torch.distributed as dist

from lockstep.distributed.world import discover
from lockstep.pipeline.cli import main
from lockstep.testing import faults


def train_parts(parts: list[tuple[str, int | None, list[str]]]) -> None:
    """Do `lockstep train` for each part.

    Args:
        parts: the folder of results, before which step an exception ends it on all ranks (None: it
            is trained to its end), and the flags.
    """
    faults.POISON = True
    world = discover()
    for output, stop, flags in parts:
        faults.WANTED = "" if stop is None else f"step:{stop}:{world.rank}:raise"
        try:
            main(["train", "--output", output, "--ranks", str(world.size), *flags])
        except RuntimeError as error:
            assert str(error) == "a fault on demand", error
            if dist.is_initialized():
                dist.destroy_process_group()
        if world.comm is not None:
            world.comm.Barrier()


if __name__ == "__main__":
    train_parts(json.loads(Path(sys.argv[1]).read_text()))
