"""A small network that learns CIFAR-10 in a few epochs: `model: examples.fast_cifar10:net`.

After K. Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU" (2024), and those before it: the
first layer is fixed and whitens patches of 2 x 2 pixels, six convolutions follow, BatchNorm has no
scale, and its shift learns 64 times as fast as the weights.
"""

import torch
from torch import nn

WIDTHS = (64, 256, 256)
# Patches of 2 x 2 pixels of photographs vary along the products of these axes (colours: grey, blue
# to yellow, green to magenta; pixels: sum, across, down, diagonal), nearly independently.
COLOURS = [[1, 1, 1], [1, 0, -1], [1, -2, 1]]
PIXELS = [[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]
# Their standard deviations in the normalised training set, rounded; what varies less than 0.1 is
# mostly noise of the compression, and is not made louder than that.
DEVIATIONS = [[3.2, 0.6, 0.6, 0.23], [0.9, 0.1, 0.1, 0.1], [0.4, 0.1, 0.1, 0.1]]


def net(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Return the network, of 2 million weights, for images of 3 x 32 x 32."""
    layers: list[nn.Module] = [whitening(), nn.GELU()]
    channels = 24
    for width in WIDTHS:
        layers += [convolution(channels, width), nn.MaxPool2d(2), Shifted(width), nn.GELU()]
        layers += [convolution(width, width), Shifted(width), nn.GELU()]
        channels = width
    layers += [nn.MaxPool2d(3), nn.Flatten(), Head(channels, classes)]
    return nn.Sequential(*layers)


def whitening() -> nn.Conv2d:
    """Return a fixed convolution to 24 channels of unit variance: 12 axes, and their negatives,
    because GELU lets only one side through."""
    colours = torch.tensor(COLOURS, dtype=torch.float32)
    pixels = torch.tensor(PIXELS, dtype=torch.float32).view(4, 2, 2) / 2
    colours = colours / colours.norm(dim=1, keepdim=True)
    axes = torch.einsum("kc,hij->khcij", colours, pixels)
    axes = (axes / torch.tensor(DEVIATIONS)[:, :, None, None, None]).flatten(0, 1)
    layer = nn.Conv2d(3, 24, kernel_size=2, bias=False)
    layer.weight = nn.Parameter(torch.cat([axes, -axes]), requires_grad=False)
    return layer


def convolution(channels: int, width: int) -> nn.Conv2d:
    """Return a 3 x 3 convolution that begins with handing on its first channels as they are."""
    layer = nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=False)
    with torch.no_grad():
        nn.init.dirac_(layer.weight[:channels])
    return layer


class Shifted(nn.BatchNorm2d):
    """BatchNorm without a scale; 8 times the parameter is the shift, which makes SGD's steps of the
    shift 64 times as long."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, momentum=0.4, affine=False)
        self.shift = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + (8 * self.shift)[:, None, None]


class Head(nn.Linear):
    """A linear layer without bias, whose logits begin small."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__(channels, classes, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) / 9
