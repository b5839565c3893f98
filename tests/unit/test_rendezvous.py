"""comm.rendezvous: how ranks find each other, here as threads or alone."""

import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from lockstep.distributed import rendezvous
from lockstep.distributed.world import World
from lockstep.pipeline.config import Run

RANKS = 256
ALONE = World(0, 1, 0, 1, "python")


class Threads:
    """MPI's communicator between threads: what ranks ask of it until they have met."""

    def __init__(self, rank, values, barrier):
        self.rank, self.values, self.barrier = rank, values, barrier

    def allgather(self, value):
        self.values[self.rank] = value
        self.barrier.wait(60)
        values = list(self.values)
        self.barrier.wait(60)
        return values

    def bcast(self, value, root):
        return self.allgather(value)[root]


@pytest.fixture
def no_interface(monkeypatch):
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(variable, "")  # so that it is put back
        monkeypatch.delenv(variable)


@pytest.mark.thorough
def test_many_ranks_meet_though_the_system_lets_few_wait(monkeypatch, no_interface):
    listen = socket.socket.listen
    monkeypatch.setattr(socket.socket, "listen", lambda self, _: listen(self, 64))
    values, barrier = [None] * RANKS, threading.Barrier(RANKS)

    def meet(rank):  # each on a host of its own, by the loopback address
        world = World(rank, RANKS, 0, RANKS, "threads", Threads(rank, values, barrier), timeout=60)
        store = rendezvous._store(world)
        store.set(f"rank {rank}", str(rank))
        found = int(store.get(f"rank {(rank + 1) % RANKS}"))
        barrier.wait(60)  # rank 0's store serves all
        return found

    with ThreadPoolExecutor(RANKS) as pool:
        assert list(pool.map(meet, range(RANKS))) == [*range(1, RANKS), 0]
    loopback = {name for _, name, is_loopback in rendezvous._addresses() if is_loopback}
    assert os.environ["GLOO_SOCKET_IFNAME"] in loopback


def test_a_rank_alone_needs_no_name_of_its_host(monkeypatch, no_interface):
    rendezvous._meeting(ALONE, "auto")
    loopback = {name for _, name, is_loopback in rendezvous._addresses() if is_loopback}
    assert os.environ["GLOO_SOCKET_IFNAME"] in loopback


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 64 + ".invalid"])
@pytest.mark.parametrize("init_method", ["tcp://{}:29500", "env://"])
def test_a_host_that_nobody_knows_is_refused_at_once(host, init_method, monkeypatch, refused):
    monkeypatch.setenv("MASTER_ADDR", host)
    monkeypatch.setenv("MASTER_PORT", "29500")
    with refused("init_method:", f"the host '{host}'", "does not know"):
        rendezvous.start(ALONE, torch.device("cpu"), "gloo", init_method.format(host))


def test_an_address_that_is_none_is_refused(refused):
    Run(init_method="tcp://[::1:29500")  # looks like one
    with refused("init_method: tcp://[::1:29500 is no address", "expected tcp://host:port"):
        rendezvous.start(ALONE, torch.device("cpu"), "gloo", "tcp://[::1:29500")


@pytest.mark.slow
def test_nobody_listens_there(refused):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        world = World(1, 2, 1, 2, "environment", timeout=1)
        with refused(f"cannot meet by {address}", "within 1 s"):
            rendezvous.start(world, torch.device("cpu"), "gloo", address)
