"""How long an all_reduce takes over MPI and over Gloo, in one run.

    python -m benchmarks.all_reduce [RANKS ...]

Starts itself with 2 and with 4 ranks (or as many as asked for) on this machine. Prints a row for
each size: the median time of torch's `dist.all_reduce` over `mpi4py` and over Gloo, the ratio, and
how much of the first is not mpi4py's own `Allreduce` on the same buffer. The three take turns, so
that what else the machine does hits all of them; a turn is many calls of a small message, one after
the other, as usual (OSU's and NVIDIA's benchmarks do so).
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch reads it

import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.distributed as dist

from tests.conftest import REPOSITORY, environment, mpirun

SIZES = [4, 64, 1024, 16 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20, 64 << 20, 256 << 20]
SECONDS = 2.0  # for a size


def main() -> None:
    for ranks in map(int, sys.argv[1:] or ["2", "4"]):
        subprocess.run(
            [*mpirun(ranks), "-m", "benchmarks.all_reduce", "rank"],
            cwd=REPOSITORY,
            env=environment(),
            check=True,
        )


def measure() -> None:
    """Measure as one rank; rank 0 prints."""
    from mpi4py import MPI

    from lockstep.distributed import rendezvous
    from lockstep.distributed.world import from_mpi

    world = from_mpi()
    rendezvous.start(world, torch.device("cpu"), "mpi4py")
    gloo = dist.new_group(backend="gloo")
    if world.rank == 0:
        print(f"{world.size} ranks, of {os.cpu_count()} cores")
        print("| bytes | mpi4py µs | Gloo µs | Gloo / mpi4py | over MPI's own µs |")
        print("|---:|---:|---:|---:|---:|", flush=True)
    for size in SIZES:
        tensor = torch.zeros(size // 4)
        buffer = [MPI.buffer.fromaddress(tensor.data_ptr(), size), size // 4, MPI.FLOAT]
        ways: list[Callable[[], object]] = [
            lambda tensor=tensor: dist.all_reduce(tensor),
            lambda tensor=tensor: dist.all_reduce(tensor, group=gloo),
            lambda buffer=buffer: MPI.COMM_WORLD.Allreduce(MPI.IN_PLACE, buffer),
        ]
        seconds: list[list[float]] = [[], [], []]
        calls = max(1, min(100, (4 << 20) // size))
        turns, end = 0, time.perf_counter() + SECONDS
        while world.comm.bcast(turns < 5 or time.perf_counter() < end):
            turns += 1
            for way, times in zip(ways, seconds, strict=True):
                world.comm.Barrier()
                started = time.perf_counter()
                for _ in range(calls):
                    way()
                times.append((time.perf_counter() - started) / calls)
        # What a rank waits for is the slowest one.
        slowest = [world.comm.reduce(times, _largest) for times in seconds]
        if world.rank == 0:
            ours, theirs, bare = (statistics.median(times[1:]) * 1e6 for times in slowest)
            ratio, more = theirs / ours, ours - bare
            print(
                f"| {size:,} | {ours:.1f} | {theirs:.1f} | {ratio:.1f} | {more:.1f} |", flush=True
            )
    rendezvous.stop()


def _largest(one: list[float], other: list[float]) -> list[float]:
    return list(map(max, one, other))


if __name__ == "__main__":
    measure() if sys.argv[1:] == ["rank"] else main()
