"""The order in which samples are seen: of the data and the seed, and not of the ranks.

Every step takes B/S samples from each of the S shards, in an order that depends on (seed, epoch,
shard) alone. Nothing here knows of ranks: whoever asks says which shard.
"""

import functools
from collections.abc import Sequence

import numpy as np

from lockstep import random as streams
from lockstep.errors import UserError


class Sampler:
    """The ids of the samples of each shard in each step.

    Args:
        members: the sample ids (int64) of each of the S shards.
        batch: B, the global batch in samples; S divides it.
        seed: what the order is drawn from.

    Raises:
        UserError: S does not divide B, or a shard is shorter than its part of a batch.
    """

    def __init__(self, members: Sequence[np.ndarray], batch: int, seed: int) -> None:
        self.members, self.seed, self.batch = members, seed, batch
        shards, smallest = len(members), min(len(ids) for ids in members)
        if batch < 1 or batch % shards:
            raise UserError(
                f"batch: {shards} shards cannot share a batch of {batch} evenly; take "
                f"{max(batch // shards, 1) * shards}"
            )
        self.size = batch // shards
        self.batches = smallest // self.size
        """The steps of an epoch."""
        if not self.batches:
            raise UserError(
                f"batch: {batch} samples over {shards} shards take {self.size} from each, and "
                f"the smallest shard has {smallest}; take a batch of at most {smallest * shards}"
            )
        # One epoch's order at a time: a shard's serves all the steps of an epoch.
        self._order = functools.lru_cache(maxsize=shards)(self._order_of)

    def ids(self, epoch: int, index: int, shard: int) -> np.ndarray:
        """Return the samples (int64, B/S) of `shard` at step `index` of `epoch`, both from 0."""
        order = self._order(epoch, shard)
        return self.members[shard][order[index * self.size : (index + 1) * self.size]]

    def _order_of(self, epoch: int, shard: int) -> np.ndarray:
        return streams.permutation(len(self.members[shard]), "order", self.seed, epoch, shard)


def split(samples: int, shards: int, seed: int) -> list[np.ndarray]:
    """Return the ids (int64) of samples 0 ... samples - 1 in each shard: at random, sizes equal to
    within one."""
    return [
        np.sort(ids) for ids in np.array_split(streams.permutation(samples, "shards", seed), shards)
    ]
