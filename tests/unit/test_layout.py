"""models.layout: parameters that are cut out of others, and those that share what they are."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lockstep.pipeline.models import build
from lockstep.reduce.layout import _places, is_dense, move, settle


def made(**tensors):
    """Return a module with these parameters and buffers."""
    module = nn.Module()
    for name, tensor in tensors.items():
        if isinstance(tensor, nn.Parameter):
            module.register_parameter(name, tensor)
        else:
            module.register_buffer(name, tensor)
    return module


def test_what_is_cut_out_of_a_larger_tensor_gets_memory_of_its_own():
    whole = torch.randn(8, 8)
    module = made(
        left=nn.Parameter(whole[:, :3]), right=nn.Parameter(whole[:, 3:]), mask=whole[::2].clone()
    )
    module.register_buffer("wide", torch.arange(3).expand(4, 3))
    settle(module)
    assert torch.equal(module.left, whole[:, :3])
    assert torch.equal(module.right, whole[:, 3:])
    assert torch.equal(module.wide, torch.arange(3).expand(4, 3))
    assert all(is_dense(t) for t in [*module.parameters(), *module.buffers()])


def test_what_lies_without_gaps_stays_where_it_is():
    whole, tied = torch.randn(6, 4), nn.Parameter(torch.randn(3))
    module = made(
        top=nn.Parameter(whole[:3]), rest=nn.Parameter(whole[3:].t()), one=tied, other=tied
    )
    places = [p.data_ptr() for p in module.parameters()]
    settle(module)
    assert [p.data_ptr() for p in module.parameters()] == places
    assert module.rest.stride() == (1, 4)
    assert module.one is module.other


@pytest.mark.parametrize(
    "tensors",
    [
        {"a": nn.Parameter(torch.ones(3)), "b": None},
        {"a": nn.Parameter(torch.zeros(1).expand(4))},
    ],
)
def test_shared_elements_are_refused(tensors, refused):
    if "b" in tensors:
        tensors["b"] = nn.Parameter(tensors["a"].data[1:])
    with refused("model: ", "a", "share memory", "clone()"):
        settle(made(**tensors))


def test_a_buffer_that_is_a_parameter_is_refused(refused):
    weight = nn.Parameter(torch.ones(2, 2))
    with refused("weight", "mirror", "share memory"):
        settle(made(weight=weight, mirror=weight.data))


def low_rank(shape, classes):
    """A model whose head is cut out of a larger matrix, as adapters of low rank are."""
    size = shape[0] * shape[1] * shape[2]
    model = nn.Sequential(nn.Flatten(), nn.Linear(size, classes))
    model[1].weight = nn.Parameter(torch.randn(classes, 2 * size)[:, :size])
    return model


def test_a_model_comes_settled():
    assert all(is_dense(p) for p in build(f"{__name__}:low_rank", (1, 4, 4), 3).parameters())


def test_a_buffer_under_two_names_stays_one():
    buffer, images = torch.arange(3).expand(4, 3), torch.ones(2, 3, 4, 4)
    module = nn.Sequential(made(a=buffer, b=images), made(a=buffer, b=images))
    settle(module)
    move(module, torch.device("cpu"))
    assert module[0].a is module[1].a
    assert module[0].b is module[1].b
    assert module[0].b.is_contiguous(memory_format=torch.channels_last)


def lazy(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(classes))


def drawn_by_numpy(shape, classes):
    model = nn.Sequential(nn.Flatten(), nn.Linear(shape[1] * shape[2], classes))
    with torch.no_grad():
        model[1].weight[:, 0] = torch.from_numpy(np.random.randn(classes)) + random.random()
    return model


@pytest.mark.parametrize("make", [lazy, drawn_by_numpy])
def test_weights_depend_on_the_seed_alone(make):
    once, again, other = (
        build(f"{__name__}:{make.__name__}", (1, 4, 4), 3, seed)[1].weight for seed in (1, 1, 2)
    )
    assert torch.equal(once, again)
    assert not torch.equal(once, other)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data())
def test_dense_is_what_permuted_memory_is(shape, data):
    order = data.draw(st.permutations(range(len(shape))))
    tensor = torch.empty(shape).permute(order)
    assert is_dense(tensor)
    gaps = torch.empty([2 * n for n in shape])[tuple(slice(0, n) for n in shape)].permute(order)
    assert is_dense(gaps) == torch.equal(_places(gaps).sort()[0], torch.arange(gaps.numel()))
