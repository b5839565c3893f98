"""A model for tests: everything that usually makes a result depend on how it was computed."""

import os

from torch import nn


def busy(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Return a small network with BatchNorm, dropout and a residual connection."""
    return nn.Sequential(
        nn.Conv2d(shape[0], 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        Residual(8),
        nn.Dropout2d(0.1),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(8 * 16, 32),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(32, classes),
    )


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )

    def forward(self, x):
        return x + self.body(x)


def broken_on_rank_1(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Return a model on all ranks but one."""
    if os.environ["RANK"] == "1":
        raise RuntimeError("no room in the museum")
    return busy(shape, classes)
