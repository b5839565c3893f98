"""How ranks find each other: a torch.distributed process group without a port to collide on.

Rank 0 lets the system choose a free port, opens the store on it, and tells the others over MPI.
"""

import os
import socket
from datetime import timedelta

import psutil
import torch
import torch.distributed as dist

from lockstep.comm.world import World
from lockstep.errors import UserError

# How long a collective may take before it is an error. A rank that is still reading its data is no
# reason to stop; one that is gone is noticed by the launcher long before.
TIMEOUT = timedelta(minutes=10)


def start(world: World, device: torch.device) -> None:
    """Start torch.distributed's default group: NCCL for a GPU's tensors, Gloo for a CPU's."""
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    device_id = device if device.type == "cuda" else None
    if world.launcher == "torchrun":  # its agent has the store, and says so in the environment
        dist.init_process_group(backend, timeout=TIMEOUT, device_id=device_id)
        return
    store = _store(world) if world.comm is not None else dist.HashStore()
    dist.init_process_group(
        backend,
        store=store,
        rank=world.rank,
        world_size=world.size,
        timeout=TIMEOUT,
        device_id=device_id,
    )


def stop() -> None:
    """Leave the process group together: rank 0's store must not go while others still use it."""
    dist.barrier()
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
