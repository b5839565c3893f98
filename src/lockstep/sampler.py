"""The order in which samples are seen: of the data and the seed, and not of the ranks.

Every step takes B/S samples from each of the S shards, in an order that depends on (seed, epoch,
shard) alone. Nothing here knows of ranks: whoever asks says which shard.

Data that no memory holds cannot be read in any order. They are read in blocks of neighbours, which
come at random, and so many samples as a window has are shuffled among one another (as WebDataset
and tf.data do it, with the blocks in the place of their files and the window of their buffer).
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
        window: how many samples, over all shards, are shuffled among one another; None: all.
        block: how many samples that are neighbours are read at once, where there is a window.

    Raises:
        UserError: S does not divide B, or a shard is shorter than its part of a batch.
    """

    def __init__(
        self,
        members: Sequence[np.ndarray],
        batch: int,
        seed: int,
        window: int | None = None,
        block: int = 1,
    ) -> None:
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
        self.window = None if window is None else max(window // shards, 1)
        """How many of a shard's samples are shuffled among one another."""
        self.block = block
        # One epoch's order at a time: a shard's serves all the steps of an epoch.
        self._order = functools.lru_cache(maxsize=shards)(self._order_of)

    def ids(self, epoch: int, index: int, shard: int) -> np.ndarray:
        """Return the samples (int64, B/S) of `shard` at step `index` of `epoch`, both from 0."""
        order = self._order(epoch, shard)
        return self.members[shard][order[index * self.size : (index + 1) * self.size]]

    def in_window(self, epoch: int, window: int, shard: int) -> np.ndarray:
        """Return the samples (int64) of a shard's window, counted from 0; none after the last."""
        assert self.window is not None
        here = slice(window * self.window, (window + 1) * self.window)
        return self.members[shard][self._order(epoch, shard)[here]]

    def _order_of(self, epoch: int, shard: int) -> np.ndarray:
        count, place = len(self.members[shard]), (self.seed, epoch, shard)
        if self.window is None:
            return streams.permutation(count, "order", *place)
        # Blocks have the same order in all shards, so that a host reads each but once an epoch.
        blocks = 1 + max(int(ids.max()) for ids in self.members) // self.block
        place_of = np.argsort(streams.permutation(blocks, "blocks", self.seed, epoch))
        in_blocks = np.argsort(place_of[self.members[shard] // self.block], kind="stable")
        words = streams.words(count, "order", *place)
        return in_blocks[np.lexsort((words, np.arange(count) // self.window))]


def split(samples: int, shards: int, seed: int) -> list[np.ndarray]:
    """Return the ids (int64) of samples 0 ... samples - 1 in each shard: at random, sizes equal to
    within one."""
    return [
        np.sort(ids) for ids in np.array_split(streams.permutation(samples, "shards", seed), shards)
    ]
