"""A program for any number of ranks: every operation is right, and what is not is found."""

import sys

import torch
import torch.distributed as dist

from lockstep.distributed import rendezvous
from lockstep.distributed.world import discover
from lockstep.measure.probe import COLUMNS, FEWEST, OPERATIONS, Buffers, Case, Link, measure, probe

BYTES = [4, 8, 12, 1000, 4096, 100_000]


def check_all(link: Link, ranks: int) -> None:
    """Run every operation at odd and even sizes; the ranks must agree on the times."""
    for name in OPERATIONS if ranks > 1 else ["all_reduce"]:
        for size in BYTES if name != "barrier" else [0]:
            case = Case(link, name, size, Buffers(size // 4 + ranks, link.device))
            seconds = measure(case, 8)
            assert case.size >= size
            assert bool((seconds > 0).all())
            everyone = [None] * ranks
            dist.all_gather_object(everyone, seconds.tolist())
            assert all(times == everyone[0] for times in everyone)


def check_rows(links: list[Link], ranks: int) -> None:
    """Probe for a moment: all ranks get the same rows, and whatever is small is in them."""
    rows = probe(links, [*BYTES, 2**30], seconds=0.0)
    everyone = [None] * ranks
    dist.all_gather_object(everyone, rows)
    assert all(those == rows for those in everyone)
    if ranks == 1:
        assert rows == []
        return
    assert all(tuple(row) == COLUMNS for row in rows)
    cells = {(row["backend"], row["operation"]) for row in rows}
    assert cells == {(link.backend, name) for link in links for name in OPERATIONS}
    assert max(row["bytes"] for row in rows) < 2**30  # for which there is no time
    for row in rows:
        assert row["iterations"] >= FEWEST
        assert 0 < row["min_us"] <= row["median_us"] <= row["p99_us"]
    assert {row["bytes"] for row in rows if row["operation"] == "all_reduce"} == set(BYTES)


def corrupt(group: dist.ProcessGroup, rank: int, name: str) -> None:
    """Make a rank put something wrong into one kind of calls, as broken memory would."""

    def change(call: torch._C._distributed_c10d.PreHookArgs) -> None:
        if call.name.name == name:
            call.input_tensors[0].view(-1)[-1] += 1

    if dist.get_rank() == rank:
        group.register_pre_hook(id(group), change)


def main(ranks: int, call: str | None = None, operation: str = "") -> None:
    world = discover(ranks)
    cpu = torch.device("cpu")
    rendezvous.start(world, cpu)
    links = [Link(name, dist.new_group(backend=name), cpu) for name in ("gloo", "mpi4py")]
    if call is not None:
        corrupt(links[0].group, ranks - 1, call)
        measure(Case(links[0], operation, 4096, Buffers(1024 + ranks, cpu)), 1)
    for link in links:
        check_all(link, ranks)
    check_rows(links, ranks)
    rendezvous.stop()
    if world.rank == 0:
        print("all results are right")


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
