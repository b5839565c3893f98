"""How ranks find each other: a torch.distributed process group without a port to collide on.

By `mpi://`, rank 0 lets the system choose a free port, opens the store on it, and tells the others
over MPI. torch's own ways are there as well.
"""

import contextlib
import faulthandler
import itertools
import os
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
import torch.distributed as dist

from lockstep.distributed import world as worlds
from lockstep.distributed.signals import name_of
from lockstep.distributed.world import TIMEOUT, World
from lockstep.errors import RanksLost, UserError, first_line, say

# Seconds after its timeout that torch has to notice by itself that ranks do not meet, and to say
# why. It waits without end where a file store holds something else, say.
GRACE = 5.0

# No entry of a file store, by which ranks meet, has so many bytes.
LONGEST_ENTRY = 2**24


def start(
    world: World,
    device: torch.device,
    backend: str = "auto",
    init_method: str = "auto",
) -> str:
    """Start torch.distributed's default group.

    Args:
        world: who this process is, and how long ranks wait for one another.
        device: where it computes.
        backend: `mpi4py`, `gloo`, `nccl`, or `auto`: NCCL between GPUs, and for a CPU's tensors
            MPI where it has started the ranks, else Gloo.
        init_method: how the ranks find each other: an address that torch.distributed knows
            (`mpi://`, `env://`, `file:///path`, `tcp://host:port`), or `auto`: by MPI where it has
            started the ranks, else by the variables that torchrun sets.

    Returns:
        The name of the backend that carries this device's tensors.

    Raises:
        UserError: the backend or the way is not to be had here.
    """
    if world.ahead:
        meet_again(world)
        return "mpi4py"
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
        from lockstep.mpi import backend as mpi

        mpi.register()
    meeting = _meeting(world, init_method)
    timer = threading.Timer(world.patience + GRACE, _give_up, (world, meeting.get("init_method")))
    timer.daemon = True
    timer.start()
    # torch waits in some places without letting another thread speak: then stacks are all there is.
    faulthandler.dump_traceback_later(
        world.patience + 2 * GRACE, exit=True, file=sys.__stderr__ or 2
    )
    try:
        dist.init_process_group(
            devices,
            timeout=timedelta(seconds=world.patience),
            device_id=device if chosen == "nccl" else None,
            **_fresh(world, meeting),
        )
    except (RuntimeError, ValueError) as error:
        if "init_method" not in meeting:
            raise
        raise UserError(
            f"init_method: the ranks cannot meet by {meeting['init_method']}: {first_line(error)}; "
            f"each must come there within {world.patience:g} s; if they do, take another port or "
            f"path, or auto"
        ) from None
    finally:
        timer.cancel()
        faulthandler.cancel_dump_traceback_later()
    return chosen


def meet_again(world: World) -> None:
    """Start a process group of the ranks that MPI has now, after `leave`.

    Groups of some of them cannot be made in it: there is no store that all can reach.
    """
    from lockstep.mpi import backend

    backend.register()
    dist.init_process_group(
        "cpu:mpi4py,cuda:mpi4py",
        store=dist.HashStore(),
        rank=world.rank,
        world_size=world.size,
        timeout=timedelta(seconds=world.patience),
    )


_meetings = itertools.count()


def _fresh(world: World, meeting: dict[str, Any]) -> dict[str, Any]:
    """Have ranks that meet by torchrun's variables do so where no earlier group of theirs did.

    Its store outlives a process group, and the addresses in it would be taken for this one's.
    """
    if meeting.get("init_method") != "env://":
        return meeting
    timeout = timedelta(seconds=world.patience)
    store, rank, size = next(dist.rendezvous("env://", world.rank, world.size, timeout=timeout))
    store.set_timeout(timeout)
    store = dist.PrefixStore(f"lockstep-{next(_meetings)}", store)
    return {"store": store, "rank": rank, "world_size": size}


def _give_up(world: World, init_method: str | None) -> None:
    """End this rank, whose call of torch's does not come back."""
    say(
        f"{name_of(world)}: init_method: the ranks have not met by {init_method or 'MPI'} within "
        f"{world.patience:g} s; see whether all came there, and whether a file of an earlier run "
        f"lies there; take another host, port or path, or auto"
    )
    os._exit(2)


def _meeting(world: World, init_method: str) -> dict[str, Any]:
    """Return what init_process_group is to be told about where the ranks meet."""
    place = {"rank": world.rank, "world_size": world.size}
    if init_method == "auto" and world.comm is None and world.size == 1:
        # There is nobody to meet; but Gloo would look up this host's name, which may be no good.
        for _, interface in socket.if_nameindex():
            if interface.startswith("lo"):  # "lo" of Linux, "lo0" of macOS
                os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        return {"store": dist.HashStore(), **place}
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
        _check_host(init_method, os.environ["MASTER_ADDR"])
    if init_method.startswith("tcp://"):
        try:
            host = urlsplit(init_method).hostname or ""
        except ValueError as error:  # a bracket that is not closed
            raise UserError(
                f"init_method: {init_method} is no address: {first_line(error)}; expected "
                f"tcp://host:port, or tcp://[address]:port in IPv6"
            ) from None
        _check_host(init_method, host)
    if init_method.startswith("file://"):
        path = Path(init_method.removeprefix("file://"))
        if path.is_dir() or not path.parent.is_dir():
            raise UserError(
                f"init_method: {path} cannot be a file; expected one in a folder that is there, on "
                f"a disk that all ranks see"
            )
        if world.comm is None:
            _check_store(path)
        else:
            # What a killed run has left there would be taken for this one's.
            if world.rank == 0:
                path.unlink(missing_ok=True)
            world.comm.Barrier()
    return {"init_method": init_method, **place}


def _check_host(init_method: str, host: str) -> None:
    """Refuse a host whose name says nothing here: torch would ask for it again and again."""
    try:
        socket.getaddrinfo(host, None)
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"init_method: {init_method} leads to the host {host!r}, which {socket.gethostname()} "
            f"does not know: {first_line(error)}; expected the name or address of rank 0's host"
        ) from None


def _check_store(path: Path) -> None:
    """Refuse a file that holds something else: torch would look in it for ranks without end.

    A store is of entries, each behind its length (4 bytes); keys and values are short. The last one
    may be being written.
    """
    if path.is_file():
        content, place = path.read_bytes(), 0
        while place < len(content):
            length = int.from_bytes(content[place : place + 4], sys.byteorder)
            if length > LONGEST_ENTRY:
                raise UserError(
                    f"init_method: {path} holds something else than ranks that meet; remove it, or "
                    f"take another path"
                )
            place += 4 + length


def from_mpi(timeout: timedelta | None = None) -> tuple[dist.Store, int, int]:
    """Return a store that all ranks reach, this rank, and their number: torch's `mpi://`."""
    world = worlds.from_mpi(timeout.total_seconds() if timeout else TIMEOUT)
    return _store(world), world.rank, world.size


def stop() -> None:
    """Leave the process group together: rank 0's store must not go while others still use it."""
    if "lockstep.mpi.losses" in sys.modules:
        from lockstep.mpi import losses

        losses.is_over = True
    with contextlib.suppress(RanksLost):  # whoever got here was done, and may be gone already
        dist.barrier()
    dist.destroy_process_group()


def stop_if_started() -> None:
    """Leave the process group together, unless that has been done."""
    if dist.is_initialized():
        stop()


def leave() -> None:
    """Leave the process group, if it is still there, without the others.

    A process that ends with Gloo's threads running may crash, and lose its exit status.
    """
    if dist.is_initialized():
        dist.destroy_process_group()


def _store(world: World) -> dist.Store:
    address, timeout = choose_address(world), timedelta(seconds=world.patience)
    store = None
    if world.rank == 0:
        store = dist.TCPStore(
            address, 0, world.size, is_master=True, timeout=timeout, wait_for_workers=False
        )
    port = world.comm.bcast(store.port if store else None, root=0)
    return store or dist.TCPStore(address, port, world.size, is_master=False, timeout=timeout)


def choose_address(world: World) -> str:
    """Return an IPv4 address of rank 0's host that every rank can reach.

    Host names are not trusted: many resolve to a loopback address on their own host. Rank 0 offers
    every address it has, one rank of each host tries them, and the first that all of these reached
    is taken. Each rank also tells Gloo and NCCL to use the interface by which it gets there, unless
    the user has.

    Raises:
        UserError: there is no such address.
    """
    own = {address: name for address, name, _ in _addresses()}
    # Between hosts a loopback address leads nowhere; on one host it leads past every firewall.
    offers = [address for address, _, loopback in _addresses() if loopback == world.one_host]
    offers = world.comm.bcast(offers, root=0)
    with socket.socket() as listener:
        if world.rank == 0:
            listener.bind(("127.0.0.1" if world.one_host else "", 0))
            listener.listen(socket.SOMAXCONN)
            # What nobody takes must fit the backlog, and that may be shorter than asked for.
            threading.Thread(target=_answer, args=(listener,), daemon=True).start()
        port = world.comm.bcast(listener.getsockname()[1] if world.rank == 0 else None, root=0)
        reached = _reached(offers, port, own) if world.local_rank == 0 else None
        everyone = [some for some in world.comm.allgather(reached) if some is not None]
        if world.rank == 0:
            listener.shutdown(socket.SHUT_RDWR)  # or the thread would wait on
    common = [address for address in offers if all(address in some for some in everyone)]
    if not common:
        raise UserError(
            f"network: no address of rank 0's host ({', '.join(offers) or 'none'}) can be reached "
            f"from all {world.size} ranks; check the hosts' routes and firewalls"
        )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((common[0], port))  # sends nothing, and shows which way it would go
        interface = own[probe.getsockname()[0]]
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(variable, interface)
    return common[0]


def _addresses() -> list[tuple[str, str, bool]]:
    """Return this host's IPv4 addresses, the interface of each, and whether it is a loopback."""
    import psutil  # here: the extra [mpi] brings it, and only ranks that MPI has started need it

    return [
        (entry.address, name, entry.address.startswith("127."))
        for name, entries in psutil.net_if_addrs().items()
        for entry in entries
        if entry.family == socket.AF_INET
    ]


def _answer(listener: socket.socket) -> None:
    """Take connections until there are no more to be taken."""
    with contextlib.suppress(OSError):
        while True:
            listener.accept()[0].close()


def _reached(offers: list[str], port: int, own: dict[str, str]) -> set[str]:
    """Return those of the addresses that this host reaches by an interface that it knows."""

    def reaches(address: str) -> bool:
        try:
            with socket.create_connection((address, port), timeout=3) as connection:
                return connection.getsockname()[0] in own
        except OSError:
            return False

    with ThreadPoolExecutor() as pool:  # each that leads nowhere takes its time
        answers = pool.map(reaches, offers)
        return {offer for offer, found in zip(offers, answers, strict=True) if found}
