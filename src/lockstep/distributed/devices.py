"""Where a rank computes: its device, its cores, and what a reader must know of them."""

import os
import platform
import socket
import sys
from pathlib import Path
from typing import Any

import torch

from lockstep.distributed.world import World
from lockstep.errors import UserError
from lockstep.provenance import caps


def choose_device(world: World, wanted: str) -> torch.device:
    """Return this rank's own device: the CPU, or a GPU that no other rank has.

    `auto` takes GPUs where every rank has one, else CPUs, on all ranks alike.

    Raises:
        UserError: `cuda` is wanted, and there is not a GPU for each rank.
    """
    if wanted == "cpu":
        return torch.device("cpu")
    gpus = torch.cuda.device_count()
    # A task of SLURM's may see one device and call it 0, as its neighbour does with another: what
    # counts is the devices themselves, on all hosts.
    device = torch.device("cuda", world.local_rank % max(gpus, 1))
    mine = str(torch.cuda.get_device_properties(device).uuid) if gpus else ""
    if world.comm is not None:
        everyone = world.comm.allgather(mine)
    else:
        everyone = [str(rank % gpus) if gpus else "" for rank in range(world.local_size)]
    if "" not in everyone and len(set(everyone)) == len(everyone):
        return device
    found = len(set(everyone) - {""})
    if wanted == "cuda":
        raise UserError(
            f"device: {world.size} ranks and {found} GPUs in all, {gpus} on "
            f"{socket.gethostname()}; NCCL wants one for each rank: take fewer ranks, or "
            f"device: cpu"
        )
    if found and world.rank == 0:
        print(f"{world.size} ranks and {found} GPUs: computing on CPUs", file=sys.stderr)
    return torch.device("cpu")


def allowed_cores() -> list[int]:
    """Return the cores that this process may run on: a launcher may have bound it to a few."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def check_cores(world: World, threads: int) -> None:
    """Refuse more ranks x threads on this host than there are cores for them.

    Raises:
        UserError: there are more, or this rank is bound to fewer cores than it has threads.
    """
    host, mine = socket.gethostname(), allowed_cores()
    everyone = world.comm.allgather((host, mine)) if world.comm else [(host, mine)]
    together = {core for where, cores in everyone if where == host for core in cores}
    if len(mine) < threads <= (os.cpu_count() or 1):
        raise UserError(
            f"threads: {threads} for each rank, and rank {world.rank} may use {len(mine)} of "
            f"{host}'s {os.cpu_count()} cores; launch with --bind-to none, or --map-by "
            f"slot:PE={threads}, or ask the system for more"
        )
    if world.local_size * threads > len(together):
        raise UserError(
            f"ranks: {world.local_size} ranks x {threads} threads on {host}, which has "
            f"{len(together)} cores for them; take fewer, or set oversubscribe: true to let them "
            f"share"
        )


def describe(world: World, device: torch.device) -> dict[str, Any]:
    """Describe this rank's place: what a reader needs to know where it ran."""
    allowed = allowed_cores()
    return {
        "rank": world.rank,
        "host": socket.gethostname(),
        "cores": os.cpu_count(),
        "bound_to": ", ".join(map(str, allowed)) if len(allowed) < (os.cpu_count() or 1) else "all",
        "processor": _processor(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "caps": caps(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }


def unlike(places: list[dict[str, Any]]) -> str:
    """Return in words how the ranks' processors differ, or nothing where they are alike.

    Args:
        places: what `describe` says of each rank.
    """
    kinds = {
        (p["processor"], p["instruction_set"], *p["caps"].items(), p["device"]) for p in places
    }
    return "; ".join(sorted(", ".join(map(str, kind)) for kind in kinds)) if len(kinds) > 1 else ""


def _processor() -> str:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
