"""The order in which samples are seen, and what augmentation makes of them.

Every step takes B/S images from each of the S shards, in an order that depends on (seed, epoch,
shard) alone; a sample's augmentation depends on (seed, epoch, sample) alone. Nothing here knows of
ranks: whoever asks says which shard.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lockstep import random as streams
from lockstep.errors import UserError
from lockstep.pipeline.data.arrays import Part


@dataclass(frozen=True)
class MicroBatch:
    """One shard's part of one step: the samples' ids (int64, b), images (uint8, b x H x W x C),
    labels (int64, b), and the step and shard that its dropout is drawn from."""

    ids: np.ndarray
    images: np.ndarray
    labels: np.ndarray
    step: int
    shard: int


class Batches:
    """The micro-batches of a training set.

    Args:
        part: the training set.
        members: the sample ids of each of the S shards.
        batch: B, the global batch in images; S divides it.
        seed: the run's seed.
        shift: the largest random shift in pixels, each way.
        flip: whether images are mirrored at random.
    """

    def __init__(
        self,
        part: Part,
        members: Sequence[np.ndarray],
        batch: int,
        seed: int,
        shift: int = 0,
        flip: bool = False,
    ) -> None:
        self.part, self.members, self.seed = part, members, seed
        self.shift, self.flip = shift, flip
        self.size = batch // len(members)
        smallest = min(len(ids) for ids in members)
        self.steps_per_epoch = smallest // self.size
        if not self.steps_per_epoch:
            raise UserError(
                f"batch: {batch} images over {len(members)} shards take {self.size} from each, and "
                f"the smallest shard has {smallest}; take a batch of at most "
                f"{smallest * len(members)}"
            )
        # One epoch's order and words at a time: a shard's order serves all the steps of an epoch.
        self._order = functools.lru_cache(maxsize=len(members))(self._order_of)
        self._words = functools.lru_cache(maxsize=1)(self._words_of)

    def get(self, epoch: int, index: int, shard: int) -> MicroBatch:
        """Return the micro-batch of `shard` at step `index` of `epoch` (all counted from 0)."""
        order = self._order(epoch, shard)
        ids = self.members[shard][order[index * self.size : (index + 1) * self.size]]
        images = self.part.images[ids]
        if self.shift or self.flip:
            images = augment(images, self._words(epoch)[ids], self.shift, self.flip)
        step = epoch * self.steps_per_epoch + index
        return MicroBatch(ids, images, self.part.labels[ids], step, shard)

    def _order_of(self, epoch: int, shard: int) -> np.ndarray:
        return streams.permutation(len(self.members[shard]), "order", self.seed, epoch, shard)

    def _words_of(self, epoch: int) -> np.ndarray:
        return streams.words(len(self.part), "augmentation", self.seed, epoch)


def augment(images: np.ndarray, words: np.ndarray, shift: int, flip: bool) -> np.ndarray:
    """Shift and mirror each image by its own random word.

    Args:
        images: uint8, b x H x W x C.
        words: uint64, b, a random word for each image.
        shift: the largest shift in pixels; what comes in from outside is zero.
        flip: whether half of the images are mirrored left to right.

    Returns:
        New images, as `images`.
    """
    count, height, width, _ = images.shape
    span = np.uint64(2 * shift + 1)
    # Three independent parts of one word; the bias of the remainder is below 2**-20.
    down = ((words & np.uint64(0x7FFFFFFF)) % span).astype(np.intp)
    right = ((words >> np.uint64(31) & np.uint64(0x7FFFFFFF)) % span).astype(np.intp)
    mirrored = (words >> np.uint64(63)).astype(bool) & flip
    padded = np.pad(images, ((0, 0), (shift, shift), (shift, shift), (0, 0)))
    columns = np.where(mirrored[:, None], np.arange(width)[::-1], np.arange(width))
    return padded[
        np.arange(count)[:, None, None],
        (down[:, None] + np.arange(height))[:, :, None],
        (right[:, None] + columns)[:, None, :],
    ]
