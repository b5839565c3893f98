"""The network of config/fast-cifar10.yaml."""

import torch

from examples.fast_cifar10 import DEVIATIONS, whitening
from lockstep.pipeline.models import build, rehearse

NAME = "examples.fast_cifar10:net"


def test_the_axes_are_orthogonal_and_have_unit_variance_where_patches_vary_along_them():
    weights = whitening().weight.detach().flatten(1)
    assert torch.equal(weights[:12], -weights[12:])
    axes = weights[:12] * torch.tensor(DEVIATIONS).flatten()[:, None]
    assert torch.allclose(axes @ axes.T, torch.eye(12), atol=1e-6)


def test_all_but_the_whitening_is_trained_from_a_convolution_that_hands_on_what_it_gets():
    model = build(NAME, (3, 32, 32), 10)
    rehearse(NAME, model, (3, 32, 32), 4)
    still = [name for name, p in model.named_parameters() if p.grad is None]
    assert still == ["0.weight"]
    x = torch.randn(2, 24, 5, 5)
    assert torch.equal(model[2](x)[:, :24], x)
