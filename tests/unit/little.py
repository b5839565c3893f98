"""A little model for images of 6 x 6 in 2 channels and 3 classes, and micro-batches of them."""

import numpy as np
import torch
from torch import nn

from lockstep.data.batches import MicroBatch

SHARDS = 3


def make_model(norm=False, dropout=False):
    """Return the model, with the same parameters each time."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4) if norm else nn.Identity(),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.2) if dropout else nn.Identity(),
        nn.Linear(64, 3),
    ).to(memory_format=torch.channels_last)


def make_batches(step=0, shards=SHARDS):
    """Return a step's micro-batches, of 4 images for each shard."""
    random = np.random.default_rng(step)
    return [
        MicroBatch(
            np.arange(4) + 4 * shard,
            random.integers(0, 256, (4, 6, 6, 2), dtype=np.uint8),
            random.integers(0, 3, 4),
            step,
            shard,
        )
        for shard in range(shards)
    ]
