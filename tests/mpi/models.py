"""A model for tests: everything that usually makes a result depend on how it was computed."""

import math
import os
import resource
import time
from pathlib import Path

import numpy as np
import torch
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


def resnet(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Return a ResNet of two blocks: BatchNorm everywhere, and nothing that draws."""
    return nn.Sequential(
        nn.Conv2d(shape[0], 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        Block(8, 8, 1),
        Block(8, 16, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, classes),
    )


def dropout(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Return a small CNN that drops channels and hidden units."""
    return nn.Sequential(
        nn.Conv2d(shape[0], 8, 5, stride=2),
        nn.ReLU(),
        nn.Dropout2d(0.1),
        nn.Conv2d(8, 16, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(3),
        nn.Flatten(),
        nn.Dropout(0.25),
        nn.Linear(16 * 9, 32),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(32, classes),
    )


class Block(nn.Module):
    """He et al., "Deep residual learning" (2016), figure 2, with a projection where it shrinks."""

    def __init__(self, width: int, wider: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, wider, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(wider),
            nn.ReLU(),
            nn.Conv2d(wider, wider, 3, padding=1, bias=False),
            nn.BatchNorm2d(wider),
        )
        self.short = nn.Sequential()
        if stride > 1:
            self.short.append(nn.Conv2d(width, wider, 1, stride, bias=False))
            self.short.append(nn.BatchNorm2d(wider))

    def forward(self, x):
        return nn.functional.relu(self.short(x) + self.body(x))


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


def other_on_rank_1(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Return a model that begins with one other bit on one of the ranks."""
    model = busy(shape, classes)
    if os.environ["RANK"] == "1":
        with torch.no_grad():
            model[0].weight[0, 0, 0, 0].view(torch.int32).bitwise_xor_(1)
    return model


class LeftOut(nn.Module):
    """A linear model that has a layer which it does not use."""

    def __init__(self, pixels: int, classes: int) -> None:
        super().__init__()
        self.used, self.left_out = nn.Linear(pixels, classes), nn.Linear(2, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.used(images.flatten(1))


def left_out(shape: tuple[int, int, int], classes: int) -> nn.Module:
    return LeftOut(math.prod(shape), classes)


def sleepy_on_rank_1(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Return a model on all ranks but one, which does not come back."""
    if os.environ["RANK"] == "1":
        time.sleep(600)
    return busy(shape, classes)


def little_resnet(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Return a ResNet as torchvision has it, of two residual blocks, for small images."""
    from torchvision.models.resnet import BasicBlock, ResNet

    model = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=classes)
    model.conv1 = nn.Conv2d(shape[0], 64, 3, stride=2, padding=1, bias=False)
    model.maxpool = model.layer3 = model.layer4 = nn.Identity()
    model.fc = nn.Linear(128, classes)
    return model


class OfBlocks(nn.Module):
    """A model that says itself what its blocks are, one of which shuffles how images lie."""

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(shape[0], 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.mixer = Mixer(shape[2] - 2)
        self.head = nn.Linear(6, classes)

    def blocks(self) -> list[nn.Module]:
        return [self.stem, self.norm, self.mixer, self.head]

    def forward(self, x):
        for block in self.blocks():
            x = block(x)
        return x


class Mixer(nn.Module):
    """The mean over rows and mixed columns, whose gradient lies otherwise than its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Linear(width, width)

    def forward(self, x):
        return nn.functional.dropout(self.mix(x), 0.1, self.training).mean((2, 3))


class Shared(nn.Module):
    """A chain in which a block occurs twice, one uses a layer twice, and two share a weight."""

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], 16))
        self.cell = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Tanh())
        self.own = Again(16)
        self.tied = nn.Linear(16, 16)
        self.last = nn.Linear(16, classes)
        self.tied.weight = self.cell[0].weight

    def blocks(self) -> list[nn.Module]:
        return [self.first, self.cell, self.own, self.cell, self.tied, self.last]

    def forward(self, x):
        for block in self.blocks():
            x = block(x)
        return x


class Again(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)

    def forward(self, x):
        return self.layer(torch.relu(self.layer(x)))


def signature(image: np.ndarray) -> tuple[int, int, int]:
    """Return what one may know an image by, however its pixels are scaled: how many are darkest and
    brightest, and the sum of the brightest ones' places."""
    flat = np.asarray(image).reshape(-1)
    brightest = np.flatnonzero(flat == flat.max())
    return int((flat == flat.min()).sum()), len(brightest), int(brightest.sum())


def delicate(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Return a model that has no answer to the image whose signature is in the environment."""
    width = shape[0] * shape[1] * shape[2]
    return nn.Sequential(Poison(), nn.Flatten(), nn.Linear(width, 32), nn.Linear(32, classes))


class Poison(nn.Module):
    def forward(self, x):
        bad = [i for i, one in enumerate(x) if str(signature(one)) == os.environ["UNBEARABLE"]]
        return x.index_fill(0, torch.tensor(bad), float("nan")) if bad else x


class Struck(nn.Module):
    """A model to which something happens on rank 1, in its 9th forward pass."""

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.body = busy(shape, classes)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        if self.calls == 9 and os.environ["RANK"] == "1":
            self.strike()
        return self.body(x)


class Drifting(Struck):
    """A model whose weights change by themselves."""

    def strike(self):
        with torch.no_grad():
            self.body[0].weight[0, 0, 0, 0].view(torch.int32).bitwise_xor_(1)


class Hungry(Struck):
    """A model that takes more memory than its rank may have."""

    def strike(self):
        free = 2**30
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + free, used + free))
        torch.ones(2 * free)


class Forgetful(nn.Module):
    """A model with a buffer that changes as it is trained, and is not in its state_dict."""

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.body = busy(shape, classes)
        self.register_buffer("seen", torch.zeros(()), persistent=False)

    def forward(self, x):
        self.seen += 1
        return self.body(x)
