"""A model that takes its time until the file `hurry` is in the working directory."""

import math
import time
from pathlib import Path

from torch import Tensor, nn


class Patience(nn.Module):
    """Nothing, slowly: half a second for a batch while it is trained."""

    def forward(self, images: Tensor) -> Tensor:
        if self.training and not Path("hurry").exists():
            time.sleep(0.5)
        return images


def net(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Return a linear model."""
    return nn.Sequential(Patience(), nn.Flatten(), nn.Linear(math.prod(shape), classes))
