"""A program for 2 ranks or more: what must not hang, and tensors that a model trains."""

import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn

from lockstep.distributed.rendezvous import from_mpi
from lockstep.mpi import backend as mpi


def a_first_group_of_some_ranks() -> None:
    group = dist.new_group([0], backend="mpi4py")
    if dist.get_rank() == 0:
        value = torch.ones(2)
        dist.all_reduce(value, group=group)
        assert value.tolist() == [1, 1]


def parameters() -> None:
    dist.new_group(backend="mpi4py")
    group = dist.new_group(backend="mpi4py")
    ranks = dist.get_world_size()
    for dtype in (torch.float32, torch.bfloat16):
        parameter = nn.Parameter(torch.ones(4, dtype=dtype))
        dist.all_reduce(parameter, group=group)
        assert parameter.tolist() == [ranks] * 4
        with torch.no_grad():  # which holds for this thread, not for the group's
            work = dist.all_reduce(parameter, group=group, async_op=True)
        work.wait()
        assert parameter.tolist() == [ranks * ranks] * 4
    weight = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last).weight
    dist.broadcast(weight, 0, group=group)
    tripled = weight * 3
    dist.all_reduce(tripled, group=group)
    assert torch.allclose(tripled, weight * 3 * ranks)
    assert "Mul" in type(tripled.grad_fn).__name__


def splits_of_which_one_is_long() -> None:
    group = dist.new_group(backend="mpi4py")
    limit, mpi.LIMIT = mpi.LIMIT, 10
    rank, ranks = dist.get_rank(), dist.get_world_size()
    sizes = [7 if other == 0 else 1 for other in range(ranks)]  # rank 0 alone receives much
    value = torch.full((sum(sizes),), rank)
    received = torch.empty(sizes[rank] * ranks, dtype=torch.long)
    dist.all_to_all_single(received, value, [sizes[rank]] * ranks, sizes, group=group)
    assert received.tolist() == [other for other in range(ranks) for _ in range(sizes[rank])]
    mpi.LIMIT = limit


def late(call: str) -> None:
    """Wait in a call to which rank 1 never comes."""
    soon = {"backend": "mpi4py", "timeout": timedelta(seconds=2)}
    group = dist.new_group(**soon) if call == "split_group" else None
    if dist.get_rank() == 1:
        time.sleep(100)
    if call == "split_group":
        dist.split_group(group, [[0, 1]])
    else:
        dist.new_group(**soon)


if __name__ == "__main__":
    mpi.register()
    store, rank, ranks = from_mpi()
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    if sys.argv[1:]:
        late(*sys.argv[1:])
    for check in (a_first_group_of_some_ranks, parameters, splits_of_which_one_is_long):
        check()
        dist.barrier()
        if rank == 0:
            print(check.__name__, flush=True)
