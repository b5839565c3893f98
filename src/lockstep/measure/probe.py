"""How fast ranks talk to one another, and whether what arrives is right.

Times are taken as nccl-tests and the OSU micro-benchmarks take them: ranks meet in a barrier before
each iteration, an iteration lasts as long as on the rank where it lasts longest, and buffers are
written anew every time, so that none lies in a cache and no old result passes for a new one. What
every iteration leaves on every rank is compared, element by element, with what it must be.
"""

import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from lockstep.errors import UserError, first_line
from lockstep.measure.cost import DIVIDED, bus_factor

SIZES = [*(8**k for k in range(1, 9)), 64 * 2**20]
"""8 B to 16 MB by factors of 8, and 64 MB."""

COLUMNS = (
    *("backend", "operation", "bytes", "iterations"),
    *("min_us", "median_us", "p99_us", "algbw_gbs", "busbw_gbs"),
)
"""The columns of a table: microseconds, and 10^9 bytes per second at the median."""

FEWEST, MOST = 3, 200
"""Iterations at one size: fewer say nothing, more say nothing new."""

ALWAYS = 2**20
"""Bytes up to which there is always time: some milliseconds an iteration, on a slow network too."""

# What a step waits for is worth more time than the rest.
_WEIGHTS = {"all_reduce": 4.0}


@dataclass(frozen=True)
class Link:
    """A backend's group of all ranks, and the device whose tensors go over it."""

    backend: str
    group: dist.ProcessGroup
    device: torch.device


class Buffers:
    """A rank's memory: a pattern, what is sent, what is received, and what that should be.

    A rank sends the pattern plus a number of its own, which another iteration has not. All values
    and sums are whole numbers that float32 holds exactly, up to 20,000 ranks.
    """

    def __init__(self, length: int, device: torch.device) -> None:
        self.pattern = torch.arange(251, dtype=torch.float32, device=device)
        self.pattern = self.pattern.repeat(-(-length // 251))[:length]
        self.sent, self.received, self.expected = (torch.empty_like(self.pattern) for _ in "abc")


class Case:
    """One operation at one size, on this rank."""

    def __init__(self, link: Link, operation: str, size: int, buffers: Buffers) -> None:
        self.link, self.operation, self.group = link, operation, link.group
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        count = -(-size // 4)
        if operation in DIVIDED:
            count = -(-count // self.ranks) * self.ranks
        self.size = 4 * count
        self.pattern, self.sent = buffers.pattern[:count], buffers.sent[:count]
        self.received, self.expected = buffers.received[:count], buffers.expected[:count]
        self.last = self.ranks - 1
        self.number = 0

    def values(self) -> torch.Tensor:
        """Return what each rank adds to the pattern in this iteration."""
        return torch.arange(self.ranks, device=self.link.device) % 61 + 64 * (self.number % 7)

    def fill(self) -> None:
        """Write the buffers for this iteration."""
        torch.add(self.pattern, int(self.values()[self.rank]), out=self.sent)
        self.received.fill_(-1)

    def parts(self, buffer: torch.Tensor) -> torch.Tensor:
        """Return a buffer as P rows, one for each rank."""
        return buffer.view(self.ranks, -1)

    def mine(self, buffer: torch.Tensor) -> torch.Tensor:
        """Return this rank's part of a buffer."""
        return self.parts(buffer)[self.rank]

    def head(self, buffer: torch.Tensor) -> torch.Tensor:
        """Return the first part of a buffer, where a part of one's own is received."""
        return self.parts(buffer)[0]

    def sum(self, pattern: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Return what the sum over ranks of a piece of what is sent must be."""
        return torch.mul(pattern, self.ranks, out=out).add_(int(self.values().sum()))

    def of(self, rank: int, pattern: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Return what a piece of what a rank sends must be."""
        return torch.add(pattern, int(self.values()[rank]), out=out)

    def of_all(self, patterns: torch.Tensor) -> torch.Tensor:
        """Return what a piece from each rank must be, a row each."""
        return torch.add(patterns, self.values()[:, None], out=self.parts(self.expected))


Pair = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Operation:
    """What is timed, and what it must leave on this rank: (found, expected), if anything."""

    run: Callable[[Case], object]
    outcome: Callable[[Case], Pair | None]
    trips: int = 1
    """Messages that it sends one after another: the time is that of one."""


def _send_recv(case: Case) -> None:
    if case.rank == 0:
        dist.send(case.sent, case.last, group=case.group)
        dist.recv(case.received, case.last, group=case.group)
    elif case.rank == case.last:
        dist.recv(case.received, 0, group=case.group)
        dist.send(case.sent, 0, group=case.group)


def _isend_irecv(case: Case) -> None:
    if case.rank in (0, case.last):
        peer = case.last - case.rank
        both = [
            dist.P2POp(dist.isend, case.sent, peer, group=case.group),
            dist.P2POp(dist.irecv, case.received, peer, group=case.group),
        ]
        for work in dist.batch_isend_irecv(both):
            work.wait()


def _from_peer(case: Case) -> Pair | None:
    if case.rank not in (0, case.last):
        return None
    return case.received, case.of(case.last - case.rank, case.pattern, case.expected)


def _gather(case: Case) -> None:
    rows = list(case.parts(case.received)) if case.rank == 0 else None
    dist.gather(case.mine(case.sent), rows, dst=0, group=case.group)


def _scatter(case: Case) -> None:
    rows = list(case.parts(case.sent)) if case.rank == 0 else None
    dist.scatter(case.head(case.received), rows, src=0, group=case.group)


def _gathered(case: Case) -> Pair:
    return case.parts(case.received), case.of_all(case.parts(case.pattern))


OPERATIONS = {
    "all_reduce": Operation(
        lambda case: dist.all_reduce(case.sent, group=case.group),
        lambda case: (case.sent, case.sum(case.pattern, case.expected)),
    ),
    "send_recv": Operation(_send_recv, _from_peer, trips=2),
    "isend_irecv": Operation(_isend_irecv, _from_peer),
    "broadcast": Operation(
        lambda case: dist.broadcast(case.sent, 0, group=case.group),
        lambda case: (case.sent, case.of(0, case.pattern, case.expected)),
    ),
    "reduce": Operation(
        lambda case: dist.reduce(case.sent, 0, group=case.group),
        lambda case: None if case.rank else (case.sent, case.sum(case.pattern, case.expected)),
    ),
    "all_gather": Operation(
        lambda case: dist.all_gather_single(case.received, case.mine(case.sent), group=case.group),
        _gathered,
    ),
    "gather": Operation(_gather, lambda case: None if case.rank else _gathered(case)),
    "scatter": Operation(
        _scatter,
        lambda case: (
            case.head(case.received),
            case.of(0, case.mine(case.pattern), case.head(case.expected)),
        ),
    ),
    "reduce_scatter": Operation(
        lambda case: dist.reduce_scatter_single(
            case.head(case.received), case.sent, group=case.group
        ),
        lambda case: (
            case.head(case.received),
            case.sum(case.mine(case.pattern), case.head(case.expected)),
        ),
    ),
    "all_to_all": Operation(
        lambda case: dist.all_to_all_single(case.received, case.sent, group=case.group),
        lambda case: (case.parts(case.received), case.of_all(case.mine(case.pattern)[None])),
    ),
    "barrier": Operation(lambda case: dist.barrier(group=case.group), lambda case: None),
}


def measure(case: Case, iterations: int) -> torch.Tensor:
    """Run an operation; return the seconds of each iteration on its slowest rank (float64, CPU).

    Raises:
        UserError: the backend failed, or gave a wrong value.
    """
    operation = OPERATIONS[case.operation]
    seconds = torch.empty(iterations, dtype=torch.float64)
    try:
        for index in range(iterations):
            case.number += 1
            case.fill()
            dist.barrier(group=case.group)
            _wait_for_device(case)
            started = time.perf_counter()
            operation.run(case)
            _wait_for_device(case)
            seconds[index] = (time.perf_counter() - started) / operation.trips
            _verify(case, operation.outcome(case))
    except RuntimeError as error:
        raise UserError(f"{_where(case)} failed: {first_line(error)}") from None
    dist.all_reduce(seconds, dist.ReduceOp.MAX)
    return seconds


def _wait_for_device(case: Case) -> None:
    if case.link.device.type == "cuda":
        torch.cuda.synchronize()


def _verify(case: Case, outcome: Pair | None) -> None:
    if outcome is None or torch.equal(*outcome):
        return
    found, expected = (tensor.flatten() for tensor in outcome)
    wrong = torch.nonzero(found != expected).flatten()
    at = int(wrong[0])
    raise UserError(
        f"{_where(case)} gave wrong values in {len(wrong)} of {len(found)} elements: element {at} "
        f"is {found[at]:g}, not {expected[at]:g}; do not train on this installation"
    )


def _where(case: Case) -> str:
    return (
        f"backend: {case.operation} over {case.link.backend} at {case.size} bytes on rank "
        f"{case.rank} ({socket.gethostname()})"
    )


def probe(links: Sequence[Link], sizes: Sequence[int], seconds: float) -> list[dict[str, object]]:
    """Measure every operation over every link, at ascending sizes, within a time.

    Every rank calls it, and gets the same rows. Sizes above 1 MB are left out where not even a few
    iterations fit into what is left of the time. One rank has nobody to talk to: there are no rows.

    Args:
        links: the backends.
        sizes: in bytes.
        seconds: the time that all of it may take, about.

    Returns:
        Rows with the COLUMNS, as nccl-tests define them.

    Raises:
        UserError: a backend failed, or gave a wrong value.
    """
    rows: list[dict[str, object]] = []
    if dist.get_world_size() == 1:
        return rows
    deadline = time.perf_counter() + seconds
    sizes = sorted(set(sizes))
    length = -(-sizes[-1] // 4) + dist.get_world_size()
    buffers = {device: Buffers(length, device) for device in {link.device for link in links}}
    jobs = [(name, link, _WEIGHTS.get(name, 1.0)) for name in OPERATIONS for link in links]
    for at, (name, link, weight) in enumerate(jobs):
        left = deadline - time.perf_counter()
        share = left * weight / sum(weight for _, _, weight in jobs[at:])
        steps = sizes if name != "barrier" else [0]
        rows += _sweep(link, name, steps, buffers[link.device], max(0.0, share))
    return rows


def _sweep(
    link: Link, name: str, sizes: Sequence[int], buffers: Buffers, share: float
) -> list[dict[str, object]]:
    """Measure one operation over one link; rank 0's clock decides how often, and where to stop."""
    deadline = time.perf_counter() + share
    rows = []
    cost = 0.0
    for at, size in enumerate(sizes):
        started = time.perf_counter()
        cost *= size / sizes[at - 1] if at else 0.0  # of an iteration, by that of the last size
        if not _agree(size <= ALWAYS or started + (1 + FEWEST) * cost < deadline):
            break
        end = started + max(0.0, deadline - started) / (len(sizes) - at)
        case = Case(link, name, size, buffers)
        measure(case, 1)  # to warm up: a backend may connect only now
        started = time.perf_counter()
        seconds = measure(case, FEWEST)
        # As many again, as long as these will be done in time.
        while more := _agree(
            2 * time.perf_counter() - started < end and min(len(seconds), MOST - len(seconds))
        ):
            seconds = torch.cat([seconds, measure(case, more)])
        cost = (time.perf_counter() - started) / len(seconds)
        rows.append(_row(case, seconds))
    return rows


def _agree(number: int) -> int:
    """Return rank 0's number."""
    agreed = torch.tensor(number, dtype=torch.int64)
    dist.broadcast(agreed, 0)
    return int(agreed)


def _row(case: Case, seconds: torch.Tensor) -> dict[str, object]:
    microseconds = seconds * 1e6
    median = float(microseconds.quantile(0.5))
    algorithm = case.size / median / 1e3 if case.size else None
    factor = bus_factor(case.operation, case.ranks)
    return {
        "backend": case.link.backend,
        "operation": case.operation,
        "bytes": case.size,
        "iterations": len(seconds),
        "min_us": float(microseconds.min()),
        "median_us": median,
        "p99_us": float(microseconds.quantile(0.99, interpolation="higher")),
        "algbw_gbs": algorithm,
        "busbw_gbs": algorithm and algorithm * factor,
    }
