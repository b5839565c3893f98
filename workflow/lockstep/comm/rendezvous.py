"""How ranks find each other: a torch.distributed process group without a port to collide on.

By `mpi://`, rank 0 lets the system choose a free port, opens the store on it, and tells the others
over MPI. torch's own ways are there as well.
"""

import os
import socket
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist

from lockstep.comm import world as worlds
from lockstep.comm.world import World
from lockstep.errors import UserError, first_line

# How long a collective may take before it is an error. A rank that is still reading its data is no
# reason to stop; one that is gone is noticed by the launcher long before.
TIMEOUT = timedelta(minutes=10)
# Between hosts it has at least this long. By then mpirun has noticed by itself that a host is lost,
# and ended the job. If ranks ask it to before, it waits for that host, and maybe for very long.
BETWEEN_HOSTS = 20.0


def start(
    world: World,
    device: torch.device,
    backend: str = "auto",
    init_method: str = "auto",
    timeout: float = TIMEOUT.total_seconds(),
) -> str:
    """Start torch.distributed's default group.

    Args:
        world: who this process is.
        device: where it computes.
        backend: `mpi4py`, `gloo`, `nccl`, or `auto`: NCCL between GPUs, and for a CPU's tensors
            MPI where it has started the ranks, else Gloo.
        init_method: how the ranks find each other: an address that torch.distributed knows
            (`mpi://`, `env://`, `file:///path`, `tcp://host:port`), or `auto`: by MPI where it has
            started the ranks, else by the variables that torchrun sets.
        timeout: how many seconds a collective may take before it is an error; between hosts at
            least BETWEEN_HOSTS.

    Returns:
        The name of the backend that carries this device's tensors.

    Raises:
        UserError: the backend or the way is not to be had here.
    """
    host = "mpi4py" if world.comm is not None else "gloo"
    chosen = backend if backend != "auto" else "nccl" if device.type == "cuda" else host
    if chosen == "nccl" and device.type != "cuda":
        raise UserError("backend: nccl is for GPUs, and this run computes on CPUs; take auto")
    if chosen == "mpi4py" and world.comm is None and world.size > 1:
        raise UserError(
            f"backend: mpi4py needs ranks that MPI has started, and {world.launcher} started "
            f"these; launch with mpirun or srun, or take gloo"
        )
    devices = f"cpu:{host},cuda:nccl" if chosen == "nccl" else f"cpu:{chosen},cuda:{chosen}"
    if "mpi4py" in devices:
        from lockstep.comm import mpi

        mpi.register()
    meeting = _meeting(world, init_method)
    limit = timeout if world.one_host else max(timeout, BETWEEN_HOSTS)
    try:
        dist.init_process_group(
            devices,
            timeout=timedelta(seconds=limit),
            device_id=device if chosen == "nccl" else None,
            **meeting,
        )
    except (RuntimeError, ValueError) as error:
        if "init_method" not in meeting:
            raise
        raise UserError(
            f"init_method: the ranks cannot meet by {meeting['init_method']}: {first_line(error)}; "
            f"take another port or path, or auto"
        ) from None
    return chosen


def _meeting(world: World, init_method: str) -> dict[str, Any]:
    """Return what init_process_group is to be told about where the ranks meet."""
    place = {"rank": world.rank, "world_size": world.size}
    if init_method == "auto" and world.comm is None and world.size == 1:
        return {"store": dist.HashStore(), **place}  # there is nobody to meet
    if init_method == "auto":
        init_method = "mpi://" if world.comm is not None else "env://"
    if init_method == "mpi://":
        if world.comm is None:
            raise UserError(
                f"init_method: mpi:// needs ranks that MPI has started, and {world.launcher} "
                f"started these; launch with mpirun or srun, or take auto"
            )
        return {"store": _store(world), **place}
    if init_method == "env://":
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if missing:
            raise UserError(
                f"init_method: env:// needs {' and '.join(missing)} in the environment of every "
                f"rank; set it to rank 0's host and a free port of it, or take mpi://"
            )
    if init_method.startswith("file://"):
        path = Path(init_method.removeprefix("file://"))
        if path.is_dir() or not path.parent.is_dir():
            raise UserError(
                f"init_method: {path} cannot be a file; expected one in a folder that is there, on "
                f"a disk that all ranks see"
            )
        if world.comm is not None:
            # What a killed run has left there would be taken for this one's.
            if world.rank == 0:
                path.unlink(missing_ok=True)
            world.comm.Barrier()
    return {"init_method": init_method, **place}


def from_mpi() -> tuple[dist.Store, int, int]:
    """Return a store that all ranks reach, this rank, and their number: torch's `mpi://`."""
    world = worlds.from_mpi()
    return _store(world), world.rank, world.size


def stop() -> None:
    """Leave the process group together: rank 0's store must not go while others still use it."""
    dist.barrier()
    dist.destroy_process_group()


def leave() -> None:
    """Leave the process group, if it is still there, without the others.

    A process that ends with Gloo's threads running may crash, and lose its exit status.
    """
    if dist.is_initialized():
        dist.destroy_process_group()


def _store(world: World) -> dist.Store:
    address = choose_address(world)
    store = None
    if world.rank == 0:
        store = dist.TCPStore(
            address, 0, world.size, is_master=True, timeout=TIMEOUT, wait_for_workers=False
        )
    port = world.comm.bcast(store.port if store else None, root=0)
    return store or dist.TCPStore(address, port, world.size, is_master=False, timeout=TIMEOUT)


def choose_address(world: World) -> str:
    """Return an IPv4 address of rank 0's host that every rank can reach.

    Host names are not trusted: many resolve to a loopback address on their own host. Rank 0 offers
    every address it has, the ranks try them, and the first that all of them reached is taken. Each
    rank also tells Gloo and NCCL to use the interface that it got there by, unless the user has.

    Raises:
        UserError: there is no such address.
    """
    own = {
        entry.address: name
        for name, entries in psutil.net_if_addrs().items()
        for entry in entries
        if entry.family == socket.AF_INET
    }
    # Between hosts a loopback address leads nowhere; on one host it leads past every firewall.
    loopback = [address for address in own if address.startswith("127.")]
    offers = loopback if world.one_host else [a for a in own if a not in loopback]
    offers = world.comm.bcast(offers, root=0)
    reached: dict[str, str] = {}
    with socket.socket() as listener:
        if world.rank == 0:
            listener.bind(("127.0.0.1" if world.one_host else "", 0))
            listener.listen(world.size * len(offers))
        port = world.comm.bcast(listener.getsockname()[1] if world.rank == 0 else None, root=0)
        for address in offers:
            try:
                with socket.create_connection((address, port), timeout=3) as connection:
                    reached[address] = own[connection.getsockname()[0]]
            except (OSError, KeyError):
                continue
        everyone = world.comm.allgather(set(reached))
    common = [address for address in offers if all(address in some for some in everyone)]
    if not common:
        raise UserError(
            f"network: no address of rank 0's host ({', '.join(offers) or 'none'}) can be reached "
            f"from all {world.size} ranks; check the hosts' routes and firewalls"
        )
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(variable, reached[common[0]])
    return common[0]
