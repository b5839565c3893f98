"""A program for 2 ranks: tensors of more than 2^31 elements, one at a time (4 GiB a rank)."""

import torch
import torch.distributed as dist

from lockstep.distributed.rendezvous import from_mpi

COUNT = 2**31 + 5


def check_ends(tensor: torch.Tensor, value: int) -> None:
    """Check elements on both sides of where a C int ends, and a sample of the others."""
    assert tensor[-10:].eq(value).all() and tensor[:10].eq(value).all()
    assert tensor[:: 2**20].eq(value).all()


if __name__ == "__main__":
    store, rank, size = from_mpi()
    dist.init_process_group("cpu:mpi4py", store=store, rank=rank, world_size=size)
    tensor = torch.full((COUNT,), rank + 1, dtype=torch.uint8)
    dist.all_reduce(tensor)
    check_ends(tensor, 3)
    dist.broadcast(tensor.fill_(rank + 5), 1)
    check_ends(tensor, 6)
    if rank == 0:
        dist.send(tensor.fill_(7), 1)
    else:
        dist.recv(tensor, 0)
    check_ends(tensor, 7)
    part = torch.full((COUNT // 2 + 1,), rank + 1, dtype=torch.uint8)
    whole = tensor.resize_(2 * len(part))
    dist.all_gather_single(whole, part)
    check_ends(whole[: len(part)], 1)
    check_ends(whole[len(part) :], 2)
    dist.reduce_scatter_single(part, whole)
    check_ends(part, 2 * (rank + 1))
    dist.barrier()
    if rank == 0:
        print("all tensors longer than 2^31 are right")
    dist.destroy_process_group()
