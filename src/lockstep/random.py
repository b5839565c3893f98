"""Random numbers that are a function of what they are for, and of nothing else.

Every draw names its purpose (a word) and its place (seed, epoch, shard, ...), so that no rank, no
order of calls and no interruption can change it. The numbers come from Philox, a counter-based
generator (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), keyed through
NumPy's SeedSequence: the raw output of both is fixed for good by NumPy's compatibility policy,
which its distributions are not. What can be had from raw words is therefore made from them here.
"""

import zlib

import numpy as np


def _sequence(purpose: str, place: tuple[int, ...]) -> np.random.SeedSequence:
    # SeedSequence makes 32-bit words of its numbers: 2**32 + 5 would be 5 and 1. Upper halves go
    # behind the lower ones, so that no large seed is the (seed, epoch) of a small one.
    lower = [number & 0xFFFFFFFF for number in place]
    upper = [number >> 32 for number in place]
    return np.random.SeedSequence(
        [zlib.crc32(purpose.encode()), *lower, *(upper if any(upper) else [])]
    )


def words(count: int, purpose: str, *place: int) -> np.ndarray:
    """Return `count` random uint64 words for this purpose and place."""
    return np.random.Philox(_sequence(purpose, place)).random_raw(count)


def permutation(count: int, purpose: str, *place: int) -> np.ndarray:
    """Return a random order of 0..count-1 (int64) for this purpose and place."""
    return np.argsort(words(count, purpose, *place), kind="stable")


def generator(purpose: str, *place: int) -> np.random.Generator:
    """Return a NumPy generator for this purpose and place, where distributions are needed."""
    return np.random.Generator(np.random.Philox(_sequence(purpose, place)))


def torch_seed(purpose: str, *place: int) -> int:
    """Return a seed for torch.manual_seed, for this purpose and place."""
    return int(_sequence(purpose, place).generate_state(1, np.uint64)[0] >> 1)
