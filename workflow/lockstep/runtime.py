"""What of the machine changes the bits of a result: set it, and write it down."""

import os
import platform
import socket
from pathlib import Path
from typing import Any

import torch

from lockstep.comm.world import World
from lockstep.errors import UserError


def pin(threads: int, device: torch.device, reproducible: bool) -> None:
    """Set the number of threads, and arithmetic that gives the same bits each time.

    Args:
        threads: of this rank. Sums inside a kernel are split among them.
        device: where to compute.
        reproducible: refuse kernels that give other bits from one call to the next.
    """
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)  # denormal numbers are up to 18 times slower on CPUs
    if reproducible:
        torch.use_deterministic_algorithms(True)
        # It would also fill new memory, lest somebody read it before writing; nothing here does.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = False  # it would choose kernels by their speed that day
    if device.type == "cuda":
        torch.cuda.set_device(device)


def choose_device(world: World, wanted: str) -> torch.device:
    """Return this rank's own device.

    Raises:
        UserError: GPUs are wanted and there is not one for each rank of this host.
    """
    gpus = torch.cuda.device_count()
    if wanted == "cpu" or (wanted == "auto" and not gpus):
        return torch.device("cpu")
    # A task of SLURM's may see one device and call it 0, as its neighbour does with another: what
    # counts is the devices themselves.
    device = torch.device("cuda", world.local_rank % gpus if gpus else 0)
    mine = str(torch.cuda.get_device_properties(device).uuid) if gpus else "none"
    everyone = (
        world.comm.allgather(mine)
        if world.comm
        else [str(r % max(gpus, 1)) for r in range(world.local_size)]
    )
    if not gpus or len(set(everyone)) < len(everyone):
        raise UserError(
            f"device: {world.local_size} ranks and {gpus} GPUs on {socket.gethostname()}, and NCCL "
            f"wants one for each rank: take at most {max(gpus, 1)} ranks a host, or device: cpu"
        )
    return device


def allowed_cores() -> list[int]:
    """Return the cores that this process may run on: a launcher may have bound it to a few."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def describe(world: World, device: torch.device) -> dict[str, Any]:
    """Describe this rank's place: what a reader needs to know where it ran."""
    allowed = allowed_cores()
    return {
        "rank": world.rank,
        "host": socket.gethostname(),
        "cores": os.cpu_count(),
        "bound_to": ", ".join(map(str, allowed)) if len(allowed) < (os.cpu_count() or 1) else "all",
        "processor": _processor(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }


def arithmetic() -> dict[str, Any]:
    """Describe what decides which kernels a CPU runs."""
    names = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS")
    return {
        "machine": platform.machine(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "caps": {name: os.environ[name] for name in names if name in os.environ},
    }


def _processor() -> str:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
