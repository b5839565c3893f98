"""The micro-batches of a training set, and what augmentation makes of them.

Which samples come when is `lockstep.sampler`'s affair; a sample's augmentation depends on (seed,
epoch, sample) alone. Nothing here knows of ranks: whoever asks says which shard.
"""

import functools
from collections.abc import Sequence

import numpy as np

from lockstep import random as streams
from lockstep.pipeline.config import Run
from lockstep.pipeline.data.arrays import Part
from lockstep.pipeline.data.augment import augment, mix, transform_of
from lockstep.sampler import Sampler
from lockstep.strategies.task import MicroBatch


class Batches:
    """The micro-batches of a training set.

    Args:
        part: the training set.
        members: the sample ids of each of the S shards.
        run: the run's configuration: its batch, its seed, and what becomes of images.
    """

    def __init__(self, part: Part, members: Sequence[np.ndarray], run: Run) -> None:
        self.part, self.run = part, run
        self.transform = None
        if part.inputs.ndim == 4:
            self.transform = transform_of(run, *part.inputs.shape[1:3])
        block = part.rows[0].block
        self.sampler = Sampler(members, run.batch, run.seed, run.shuffle_window, block)
        self._ahead: dict[int, tuple[int, int]] = {}  # of each shard: (epoch, window) that is read
        self.steps_per_epoch = self.sampler.batches
        # One epoch's random words at a time, for each purpose.
        self._words = functools.lru_cache(maxsize=2)(self._words_of)

    def get(self, epoch: int, index: int, shard: int) -> MicroBatch:
        """Return the micro-batch of `shard` at step `index` of `epoch` (all counted from 0)."""
        ids = self.sampler.ids(epoch, index, shard)
        run, step = self.run, epoch * self.steps_per_epoch + index
        if self.sampler.window:
            self._read_ahead(epoch, index * self.sampler.size // self.sampler.window, shard)
        inputs, targets = self.part.read(ids)
        if run.shift or run.flip:
            inputs = augment(inputs, self._words("augmentation", epoch)[ids], run.shift, run.flip)
        if self.transform is not None:
            inputs = self.transform(inputs, self._words("transforms", epoch)[ids])
        if run.mixup or run.cutmix:
            inputs, targets = mix(inputs, targets, run, (epoch, index, shard))
        return MicroBatch(ids, inputs, targets, step, shard)

    def _read_ahead(self, epoch: int, window: int, shard: int) -> None:
        """Have the window after this one read while this one is trained on."""
        if self._ahead.get(shard) != (epoch, window):
            self._ahead[shard] = epoch, window
            for near in (window, window + 1):
                self.part.rows[0].read_ahead(self.sampler.in_window(epoch, near, shard))

    def _words_of(self, purpose: str, epoch: int) -> np.ndarray:
        return streams.words(len(self.part), purpose, self.run.seed, epoch)
