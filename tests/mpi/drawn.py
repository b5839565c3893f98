"""Models drawn at random, as odd as users' models are: `tests.mpi.drawn:m17` is number 17.

Each is a chain of blocks, some of which share what they are made of, keep what they should not, or
lie in memory as parameters rarely do. Every strategy must give the bits of one process, or refuse.
"""

import random
import re
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

WIDTH = 24


def __getattr__(name: str) -> Callable[[tuple[int, int, int], int], nn.Module]:
    if re.fullmatch(r"m[0-9]+", name):
        return partial(draw, int(name[1:]))
    raise AttributeError(name)


def draw(number: int, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Return model number `number`; its weights are drawn by torch, its structure is not."""
    of = random.Random(number)
    blocks: list[nn.Module] = [stem(of, shape[0]), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    for _ in range(of.randint(2, 5)):
        blocks.append(of.choice(KINDS)(of, blocks))
    linears = [block for block in blocks if type(block) is nn.Linear]
    if linears and of.random() < 0.2:
        blocks.append(SharedHead(of.choice(linears), classes))
    else:
        blocks.append(nn.Linear(WIDTH, classes))
    return of.choice([nn.Sequential, Listed, Opaque])(*blocks)


def norm(of: random.Random, kind: type[nn.Module], width: int) -> nn.Module:
    return kind(width, momentum=of.choice([0.1, 0.3, None]))


def stem(of: random.Random, channels: int) -> nn.Module:
    conv = nn.Conv2d(channels, 6, 3, stride=3, bias=of.random() < 0.5)
    return nn.Sequential(conv, norm(of, nn.BatchNorm2d, 6) if of.random() < 0.5 else nn.ReLU())


class Listed(nn.Module):
    """A model that says what its blocks are."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(blocks)

    def blocks(self) -> list[nn.Module]:
        return list(self.parts)

    def forward(self, x):
        for block in self.parts:
            x = block(x)
        return x


class Opaque(Listed):
    """A model that does not."""

    blocks = None


class SharedHead(nn.Module):
    """A head whose weights are rows of a body's."""

    def __init__(self, body: nn.Linear, classes: int) -> None:
        super().__init__()
        self.body, self.classes = body, classes

    def forward(self, x):
        return functional.linear(x, self.body.weight[: self.classes])


class Block(nn.Module):
    """relu(x W + b), and what a kind does beside it."""

    def __init__(self, weight: nn.Parameter | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH) / WIDTH**0.5)
        if weight is not None:
            self.weight = weight
        self.bias = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x):
        return functional.relu(functional.linear(x, self.weight, self.bias))


class Cut(Block):
    """Its weight is cut out of a larger matrix."""

    def __init__(self) -> None:
        super().__init__(nn.Parameter(torch.randn(WIDTH, 2 * WIDTH)[:, :WIDTH] / WIDTH**0.5))


class Transposed(Block):
    def __init__(self) -> None:
        super().__init__(nn.Parameter((torch.randn(WIDTH, WIDTH) / WIDTH**0.5).t()))


class Overlapping(Block):
    """Its bias is a row of its weight, in the same memory."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(self.weight.data[0])


class Frozen(Block):
    def __init__(self) -> None:
        super().__init__()
        self.weight.requires_grad_(False)


class Unused(Block):
    """It has a parameter that it does not use, and one that it uses when it is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.never = nn.Parameter(torch.ones(3))
        self.later = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x):
        return super().forward(x) if self.training else super().forward(x) * self.later


class Scaled(Block):
    """It has a parameter of no dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.7))

    def forward(self, x):
        return super().forward(x) * self.scale


class Centred(Block):
    """It assigns a buffer anew, as DINO's centre is; others it counts in, or leaves alone."""

    def __init__(self, persistent: bool = True) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(WIDTH), persistent=persistent)
        self.register_buffer("seen", torch.tensor(0, dtype=torch.int32))
        self.register_buffer("begun", torch.tensor(False))
        self.register_buffer("mask", torch.full((WIDTH,), float("-inf")))
        self.register_buffer("order", torch.arange(WIDTH).expand(2, WIDTH))

    def forward(self, x):
        x = super().forward(x)
        if self.training:
            self.centre = 0.9 * self.centre + 0.1 * x.detach().mean(0)
            self.seen = self.seen + 2
            self.begun = torch.tensor(True)
        return x - self.centre + self.mask.exp()


class Twice(Block):
    """It calls its own layer twice."""

    def forward(self, x):
        return super().forward(super().forward(x))


class Normed(Block):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return x + self.layer(super().forward(x))


class Recomputed(Block):
    """It is computed again in the backward pass, dropout and all."""

    def forward(self, x):
        def body(x):
            return functional.dropout(super(Recomputed, self).forward(x), 0.2, self.training)

        return checkpoint(body, x, use_reentrant=False)


class Remembering(Block):
    """It keeps what it gave last, for whoever looks, and an old-style weight norm's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.normed = nn.utils.weight_norm(nn.Linear(WIDTH, WIDTH))

    def forward(self, x):
        self.last = self.normed(super().forward(x))
        return self.last


class AlwaysDropping(Block):
    """It drops units even when it is evaluated, and has a buffer of a type that Gloo has not."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(3, dtype=torch.int16))

    def forward(self, x):
        if self.training:
            self.count += 1
        return functional.dropout(super().forward(x), 0.1)


class Lazy(Block):
    """It finds out by itself how many units come in."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LazyLinear(WIDTH)

    def forward(self, x):
        return self.layer(super().forward(x))


class Drawn(Block):
    """Its weights are drawn by NumPy."""

    def __init__(self) -> None:
        super().__init__(nn.Parameter(torch.from_numpy(np.random.randn(WIDTH, WIDTH)).float() / 5))


class Omitting(Block):
    """It leaves a parameter out of its state_dict: refused."""

    def __init__(self) -> None:
        super().__init__()
        self.register_state_dict_post_hook(
            lambda module, state, prefix, _: state.__delitem__(f"{prefix}bias")
        )


class Noisy(Block):
    """It draws by NumPy: refused."""

    def forward(self, x):
        return super().forward(x) * (1 + float(np.random.random()))


class Counting(Block):
    """What it does depends on how often it was called: refused."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x) * (1 + 0.1 * self.calls)


def again(of: random.Random, blocks: list[nn.Module]) -> nn.Module:
    """Return a block that is there already, if there is one."""
    return of.choice(blocks[3:]) if len(blocks) > 3 else Twice()


def tied(of: random.Random, blocks: list[nn.Module]) -> nn.Module:
    """Return a block with the weight of another, if there is one."""
    weights = [getattr(block, "weight", None) for block in blocks[3:]]
    weights = [w for w in weights if isinstance(w, nn.Parameter) and w.shape == (WIDTH, WIDTH)]
    return Block(of.choice(weights)) if weights else Block()


Kind = Callable[[random.Random, list[nn.Module]], nn.Module]
KINDS: list[Kind] = [
    *([again, tied] * 3),
    *([lambda of, blocks: nn.Linear(WIDTH, WIDTH)] * 2),
    lambda of, blocks: Cut(),
    lambda of, blocks: Transposed(),
    lambda of, blocks: Frozen(),
    lambda of, blocks: Unused(),
    lambda of, blocks: Scaled(),
    lambda of, blocks: Twice(),
    lambda of, blocks: Centred(),
    lambda of, blocks: Remembering(),
    lambda of, blocks: AlwaysDropping(),
    lambda of, blocks: Lazy(),
    lambda of, blocks: Drawn(),
    lambda of, blocks: Recomputed(),
    lambda of, blocks: Normed(norm(of, nn.BatchNorm1d, WIDTH)),
    lambda of, blocks: Normed(nn.LayerNorm(WIDTH)),
    lambda of, blocks: nn.Dropout(of.choice([0.0, 0.2])),
    lambda of, blocks: parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH)),
    lambda of, blocks: parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH)),
    lambda of, blocks: of.choice(
        [Overlapping, Noisy, Counting, Omitting, lambda: Centred(persistent=False)]
    )(),
]
