"""split: models as chains of blocks, and chains cut into stages of about equal cost."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lockstep.pipeline.models import build
from lockstep.strategies.split import balance, blocks_of, cut, tensors_of
from tests.mpi.models import OfBlocks

SHAPE = (1, 28, 28)


def example(shape):
    return torch.linspace(-1, 1, 2 * math.prod(shape)).view(2, *shape)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=7), st.integers(1, 7))
def test_the_costliest_stage_is_as_cheap_as_can_be(costs, stages):
    stages = min(stages, len(costs))
    bounds = balance(costs, stages)
    assert [i for a, b in bounds for i in range(a, b)] == list(range(len(costs)))
    assert all(a < b for a, b in bounds)

    def largest(ends):
        return max(sum(costs[a:b]) for a, b in itertools.pairwise([0, *ends, len(costs)]))

    every = itertools.combinations(range(1, len(costs)), stages - 1)
    assert largest([b for _, b in bounds[:-1]]) == min(map(largest, every))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shape", "stages"),
    [
        *(("cnn", SHAPE, stages) for stages in (1, 2, 3, 4)),
        ("linear", SHAPE, 1),
        ("resnet18", (3, 32, 32), 4),
        ("vgg11_bn", (3, 64, 64), 3),
        ("mobilenet_v3_small", (3, 64, 64), 2),
        ("tests.mpi.models:OfBlocks", SHAPE, 4),
        ("tests.mpi.models:Shared", SHAPE, 3),
    ],
)
def test_stages_one_after_the_other_are_the_model(name, shape, stages):
    model = build(name, shape, 10)
    cuts = cut(model, example(shape), stages)
    assert len(cuts) == stages
    assert all(any(p.requires_grad for p in stage.parameters()) for stage in cuts)
    together = [id(t) for stage in cuts for t in tensors_of(stage)]
    assert sorted(together) == sorted(map(id, tensors_of(model)))
    assert model.training
    assert all(module.training for stage in cuts for module in stage.modules())
    value = images = torch.randn(2, *shape)
    model.eval()
    for stage in cuts:
        value = stage.eval()(value)
    assert torch.equal(value, model(images))


def test_a_cut_leaves_the_model_as_it_was():
    model = build("resnet18", (3, 32, 32), 10)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    cut(model, example((3, 32, 32)), 2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_stages_of_a_resnet_are_of_similar_cost():
    cuts = cut(build("resnet18", (3, 32, 32), 10), example((3, 32, 32)), 2)
    convolutions = [sum(isinstance(m, nn.Conv2d) for m in stage.modules()) for stage in cuts]
    assert min(convolutions) >= 8  # of 20, which cost about the same each


class Skipping(OfBlocks):
    def blocks(self):
        return super().blocks()[1:]


class Wrong(OfBlocks):
    def forward(self, x):
        return super().forward(x) + 1


class Stranger(OfBlocks):
    def __init__(self, shape, classes):
        super().__init__(shape, classes)
        self.other = nn.Linear(2, 2)


class Twice(nn.Sequential):
    def __init__(self):
        layer = nn.Linear(4, 4)
        super().__init__(nn.Flatten(), nn.Linear(784, 4), layer, nn.ReLU(), layer)

    def blocks(self):
        return list(self)


@pytest.mark.parametrize(
    ("model", "stages", "words"),
    [
        (nn.Linear(2, 2), 1, ["Linear cannot be cut", "blocks()", "another strategy"]),
        (build("linear", SHAPE, 10), 2, ["1 blocks with parameters", "2 stages", "1 at most"]),
        (Skipping(SHAPE, 10), 2, ["blocks of Skipping cannot be called one after the other"]),
        (Wrong(SHAPE, 10), 2, ["blocks of Wrong", "do not return what the model does"]),
        (Stranger(SHAPE, 10), 2, ["blocks of Stranger", "just the parameters that it has"]),
        (
            Twice(),
            3,
            ["Twice has 2 blocks", "too few for 3 stages", "share a parameter count as one"],
        ),
    ],
)
def test_a_model_that_cannot_be_cut_is_refused(refused, model, stages, words):
    with refused("model: ", *words):
        cut(model.train(), example(SHAPE), stages)


def test_a_sequential_is_its_layers_however_nested():
    inner = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Tanh()))
    kinds = [type(block) for block in blocks_of(nn.Sequential(nn.Flatten(), inner))]
    assert kinds == [nn.Flatten, nn.ReLU, nn.Tanh]
