"""check: what this machine and this MPI can do, tried before a launch goes wrong.

It starts the ranks as `train` would, finds out where they are, does a step's passes with each model
on the shape of its input, and measures how fast the ranks talk to one another over each backend.
"""

import os
import platform
import socket
from pathlib import Path
from typing import Any, cast

import pandas as pd
import torch
import torch.distributed as dist

from lockstep import determinism, provenance
from lockstep.distributed import devices
from lockstep.distributed.world import World
from lockstep.errors import UserError
from lockstep.files import atomic, write_json
from lockstep.measure import probe
from lockstep.pipeline.kinds import TASKS
from lockstep.pipeline.models import build, rehearse
from lockstep.session import Session


def check(
    ranks: int,
    threads: int,
    oversubscribe: bool,
    device: str,
    models: list[str],
    images: int,
    shape: tuple[int, ...],
    classes: int,
    seconds: float,
    output: Path,
    task: str = "classification",
) -> dict[str, Any] | None:
    """Try a launch and write what was found to `output`, and beside it a table, on rank 0.

    Args:
        ranks: the number of ranks that must come up.
        threads: the number of threads of each.
        oversubscribe: whether more ranks x threads than cores are allowed.
        device: auto, cpu or cuda.
        models: the models that are to be trained.
        images: B/S, the number of samples that a model gets at once.
        shape: (C, H, W) of their input, or what inputs of the task have.
        classes: the number of their outputs.
        seconds: the time that measuring the communication may take, about.
        output: the JSON file to write; the table gets the same name with the ending .csv, and the
            columns `probe.COLUMNS`.
        task: what the models are to learn.

    Raises:
        UserError: a launch like this would go wrong; the line says how to mend it.
    """
    if output.suffix == ".csv":
        raise UserError(f"{output}: the table gets this name; call the JSON file another")
    with Session(
        ranks=ranks, threads=threads, device=device, oversubscribe=oversubscribe, saves=False
    ) as session:
        world, where = session.world, session.device
        sizes = {}
        for name in models:
            model = build(name, shape, classes, kind=TASKS[task])
            rehearse(name, model, shape, images, TASKS[task])
            sizes[name] = sum(p.numel() for p in model.parameters())
        places: list[Any] = [None] * world.size
        place = {**devices.describe(world, where), "address": _address(), "threads": threads}
        place["load"] = os.getloadavg()[0]  # before we add to it: what else goes on here
        dist.all_gather_object(places, place)
        links = _links(world, where)
        backends = {link.backend: _first(link) for link in links}
        gradients = [4 * parameters for parameters in sizes.values()]
        rows = probe.probe(links, [*probe.SIZES, *gradients], seconds)
        session.close()
        if world.rank:
            return None
        record = {
            "ranks": places,
            "launcher": world.launcher,
            "mpi": _mpi_version(world),
            "system": platform.platform(),
            "backends": backends,
            "models": sizes,
            "arithmetic": determinism.arithmetic(),
            "versions": provenance.versions(),
        }
        with atomic(output.with_suffix(".csv")) as draft:
            table = pd.DataFrame(rows, columns=list(probe.COLUMNS))
            table.to_csv(draft, index=False, float_format="%.6g")
        write_json(output, record)
        return record


def _links(world: World, device: torch.device) -> list[probe.Link]:
    """Return a group of all ranks for each backend that this launch could train with."""
    cpu = torch.device("cpu")
    found = {"gloo": cpu}
    if world.comm is not None and dist.is_backend_available("mpi4py"):
        found["mpi4py"] = cpu
    if device.type == "cuda":
        found["nccl"] = device
    # A rank that is no member of a group gets a number for it; here all are members.
    return [
        probe.Link(name, cast(dist.ProcessGroup, dist.new_group(backend=name)), where)
        for name, where in found.items()
    ]


def _first(link: probe.Link) -> dict[str, float]:
    """All-reduce 4 KB; return the milliseconds that the first and the median of ten more took."""
    size = 4096
    case = probe.Case(link, "all_reduce", size, probe.Buffers(size // 4, link.device))
    seconds = probe.measure(case, 11)
    return {
        "first_ms": float(seconds[0]) * 1e3,
        "median_ms": float(seconds[1:].quantile(0.5)) * 1e3,
    }


def for_terminal(table: Path) -> str:
    """Return what a table holds, in a few lines for a person."""
    frame = pd.read_csv(table)
    if frame.empty:
        return "one rank: no communication to measure"
    best = frame.groupby(["operation", "backend"], sort=False).agg(
        latency_us=("median_us", "min"), busbw_gbs=("busbw_gbs", "max")
    )
    return best.unstack("backend").round(2).to_string(na_rep="")


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
