"""check: what this machine and this MPI can do, tried before a launch goes wrong.

It starts the ranks as `train` would, finds out where they are, sends a first all-reduce through
each backend, and does a step's passes with each model on the shape of its input.
"""

import platform
import socket
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from lockstep import provenance, runtime
from lockstep.comm import rendezvous
from lockstep.comm.world import World, discover
from lockstep.errors import UserError
from lockstep.files import write_json
from lockstep.models import build, rehearse


def check(
    ranks: int,
    threads: int,
    oversubscribe: bool,
    device: str,
    models: list[str],
    images: int,
    shape: tuple[int, int, int],
    classes: int,
    output: Path,
) -> dict[str, Any] | None:
    """Try a launch and write what was found to `output`, on rank 0.

    Args:
        ranks: the number of ranks that must come up.
        threads: the number of threads of each.
        oversubscribe: whether more ranks x threads than cores are allowed.
        device: auto, cpu or cuda.
        models: the models that are to be trained.
        images: B/S, the number of images that a model gets at once.
        shape: (C, H, W) of their input.
        classes: the number of their outputs.
        output: the JSON file to write.

    Raises:
        UserError: a launch like this would go wrong; the line says how to mend it.
    """
    world = discover(ranks)
    if not oversubscribe:
        runtime.check_cores(world, threads)
    where = runtime.choose_device(world, device)
    runtime.pin(threads, where, reproducible=True)
    sizes = {}
    for name in models:
        model = build(name, shape, classes)
        rehearse(name, model, shape, classes, images)
        sizes[name] = sum(p.numel() for p in model.parameters())
    rendezvous.start(world, where)
    places: list[Any] = [None] * world.size
    place = {**runtime.describe(world, where), "address": _address(), "threads": threads}
    dist.all_gather_object(places, place)
    backends = {"gloo": _try(torch.device("cpu"), world)}
    if where.type == "cuda":
        backends["nccl"] = _try(where, world)
    rendezvous.stop()
    if world.rank:
        return None
    record = {
        "ranks": places,
        "launcher": world.launcher,
        "mpi": _mpi_version(world),
        "system": platform.platform(),
        "backends": backends,
        "models": sizes,
        "arithmetic": runtime.arithmetic(),
        "versions": provenance.versions(),
    }
    write_json(output, record)
    return record


def _try(device: torch.device, world: World) -> dict[str, Any]:
    """All-reduce a known vector; return the milliseconds that the first and the median one took."""
    expected = torch.arange(1024, device=device, dtype=torch.float32) * sum(
        range(1, world.size + 1)
    )
    milliseconds = []
    for _ in range(11):
        value = torch.arange(1024, device=device, dtype=torch.float32) * (world.rank + 1)
        started = time.perf_counter()
        dist.all_reduce(value)
        if device.type == "cuda":
            torch.cuda.synchronize()
        milliseconds.append((time.perf_counter() - started) * 1e3)
        if not torch.equal(value, expected):
            raise UserError(
                f"backend: an all-reduce on {device.type} gave a wrong sum on rank {world.rank} "
                f"({socket.gethostname()}); do not train on this installation"
            )
    return {"first_ms": milliseconds[0], "median_ms": sorted(milliseconds[1:])[5]}


def _address() -> str:
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return "does not resolve"


def _mpi_version(world: World) -> str:
    if world.comm is None:
        return "not used"
    from mpi4py import MPI

    return MPI.Get_library_version().split(",")[0].strip()
