"""A little model for images of 6 x 6 in 2 channels and 3 classes, and micro-batches of them."""

import numpy as np
import torch
from torch import nn

from lockstep.strategies.task import MicroBatch

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


class Tied(nn.Module):
    """A model that uses one weight twice, and has a parameter of no dimension and a frozen one."""

    def __init__(self, shape, classes):
        super().__init__()
        width = shape[0] * shape[1] * shape[2]
        self.first = nn.Linear(width, width, bias=False)
        self.again = nn.Linear(width, width)
        self.again.weight = self.first.weight
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.shift = nn.Parameter(torch.tensor(0.1), requires_grad=False)
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        x = torch.relu(self.first(x.flatten(1)))
        return self.head(torch.relu(self.again(x) * self.scale + self.shift))
