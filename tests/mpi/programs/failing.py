"""A program in which rank 1 fails, in the way that is named, while the others wait for it."""

import os
import signal
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist

from lockstep.distributed.rendezvous import from_mpi


def hang() -> None:
    time.sleep(600)  # the line that hangs


def fail(way: str) -> None:
    if way == "raises":
        raise RuntimeError("a tensor too many")
    if way == "sys.exit":
        sys.exit(3)
    if way == "os._exit":
        os._exit(0)
    if way == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    hang()


if __name__ == "__main__":
    way = sys.argv[1]
    store, rank, size = from_mpi()
    if way == "early" and rank == 1:
        raise RuntimeError("nothing was begun")
    patience = timedelta(seconds=4 if way == "hangs" else 300)
    dist.init_process_group("cpu:mpi4py", store=store, rank=rank, world_size=size, timeout=patience)
    dist.barrier()
    print("began", time.time(), flush=True)
    if rank == 1:
        fail(way)
    dist.all_reduce(torch.ones(3))
    print("the others went on", flush=True)
