"""The micro-batches of a training set, and what augmentation makes of them.

Which samples come when is `lockstep.sampler`'s affair; a sample's augmentation depends on (seed,
epoch, sample) alone. Nothing here knows of ranks: whoever asks says which shard.
"""

import functools
from collections.abc import Sequence

import numpy as np

from lockstep import random as streams
from lockstep.pipeline.data.arrays import Part
from lockstep.sampler import Sampler
from lockstep.strategies.task import MicroBatch


class Batches:
    """The micro-batches of a training set.

    Args:
        part: the training set.
        members: the sample ids of each of the S shards.
        batch: B, the global batch in samples; S divides it.
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
        self.part, self.seed = part, seed
        self.shift, self.flip = shift, flip
        self.sampler = Sampler(members, batch, seed)
        self.steps_per_epoch = self.sampler.batches
        # One epoch's random words at a time.
        self._words = functools.lru_cache(maxsize=1)(self._words_of)

    def get(self, epoch: int, index: int, shard: int) -> MicroBatch:
        """Return the micro-batch of `shard` at step `index` of `epoch` (all counted from 0)."""
        ids = self.sampler.ids(epoch, index, shard)
        inputs = self.part.inputs[ids]
        if self.shift or self.flip:
            inputs = augment(inputs, self._words(epoch)[ids], self.shift, self.flip)
        step = epoch * self.steps_per_epoch + index
        return MicroBatch(ids, inputs, self.part.targets[ids], step, shard)

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
