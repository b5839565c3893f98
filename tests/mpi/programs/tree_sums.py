"""A program for any number of ranks: sums along the tree are what the tree's definition says."""

import hashlib

import torch
import torch.distributed as dist

from lockstep.distributed import rendezvous
from lockstep.distributed.world import discover
from lockstep.reduce.tree import TreeReduce, block


def tree(terms: list[torch.Tensor]) -> torch.Tensor:
    """Add up neighbours, level by level, as the definition has it."""
    while len(terms) > 1:
        pairs = [terms[i : i + 2] for i in range(0, len(terms), 2)]
        terms = [pair[0] + pair[1] if len(pair) == 2 else pair[0] for pair in pairs]
    return terms[0]


def main(ranks: int, backend: str) -> None:
    world = discover(ranks)
    device = torch.device("cpu")
    rendezvous.start(world, device, backend)
    chosen = set()
    # Whether or not the ranks share them evenly.
    for shards in (s for s in (1, 2, 3, 4, 5, 6, 7, 8, 12, 24) if s >= world.size):
        for length in (1, 2, 7, 1000, 100_003):
            for dtype in (torch.float32, torch.float64):
                torch.manual_seed(shards * length)
                size = 10.0 ** torch.randint(-6, 7, (shards, length))
                terms = list((torch.randn(shards, length) * size).to(dtype))
                reduce = TreeReduce(length, shards, world.rank, world.size, dtype, device)
                chosen.add(reduce.way.__name__)
                ways = (
                    [reduce.way] if world.size == 1 else [reduce.way, reduce._meet, reduce._share]
                )
                if shards == world.size and world.size in (2, 4, 8):
                    ways.append(reduce._butterfly)
                for reduce.way in [*ways, *ways]:  # later on buffers that were used before
                    stack = []
                    for shard in block(world.rank, world.size, shards):
                        buffer = reduce.take().zero_()
                        buffer[:length] = terms[shard]
                        reduce.add(stack, shard, buffer)
                    total = reduce.all_reduce(stack)
                    assert torch.equal(total[:length], tree(terms)), (shards, length, dtype)
                    reduce.free(total)
                digest = hashlib.sha256(total[:length].numpy().tobytes()).hexdigest()
                everyone = [None] * world.size
                dist.all_gather_object(everyone, digest)
                assert len(set(everyone)) == 1, (shards, length, dtype)
    rendezvous.stop()
    if world.rank == 0:
        print("all sums are right, by", *sorted(chosen))


if __name__ == "__main__":
    import sys

    main(int(sys.argv[1]), sys.argv[2])
