"""rehearsal: what two passes show of a model, and what they leave of it."""

import random
import time

import numpy as np
import pytest
import torch
from torch import nn

from lockstep import tensors as state
from lockstep.pipeline.config import Run
from lockstep.pipeline.tasks.classification import Classification
from lockstep.pipeline.tasks.rehearsal import rehearse
from lockstep.pipeline.tasks.supervised import Normalize
from lockstep.reduce.layout import copy_of
from tests.unit.little import make_batches, make_model

CPU = torch.device("cpu")


class Odd(nn.Module):
    """The little model, with something that its forward pass does on the way."""

    def __init__(self, act, **buffers):
        super().__init__()
        self.body = make_model(norm=True, dropout=True)
        self.act = act
        self.calls = 0
        for name, value in buffers.items():
            self.register_buffer(name, value, persistent=not name.startswith("passing"))

    def forward(self, x):
        return self.act(self, self.body(x))


class Extra(nn.Linear):
    def get_extra_state(self):
        return {"anything": object()}

    def set_extra_state(self, state):
        pass


class RandomBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * random.random()


def numpy_noise(model, x):
    return x * (1 + np.random.random())


def count(model, x):
    model.calls += 1
    return x * model.calls


def clock(model, x):
    return x * (1 + time.perf_counter_ns() % 1_000_003)


def remember(model, x):
    last, model.last = getattr(model, "last", 0.0), x.detach()
    return x + last


def noise_behind(model, x):
    return RandomBackward.apply(x)


def shrink(model, x):
    model.body[5].weight.data.mul_(0.99)
    return x


def center(model, x):
    model.center = 0.9 * model.center + 0.1 * x.detach().mean(0)
    return x - model.center


def passing(model, x):
    model.passing_center = 0.9 * model.passing_center + 0.1 * x.detach().mean(0)
    return x - model.passing_center


def grow(model, x):
    model.center = torch.cat([model.center, model.center])
    return x


def double(model, x):
    model.center = model.center.double()
    return x


def register(model, x):
    model.register_buffer("late", x.detach().mean(0))
    return x


def try_it(model):
    model.train()
    task = Classification(Run(), Normalize([0.5, 0.4], [0.3, 0.2], CPU), (2, 6, 6), CPU)
    rehearse(model, task, make_batches()[0])


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (numpy_noise, ["in Odd", "NumPy"]),
        (count, ["in Odd", "a counter"]),
        (clock, ["in Odd", "the clock"]),
        (remember, ["in Odd", "from the pass before"]),
        (noise_behind, ["in the gradient of body.0.bias"]),
        (shrink, ["the parameter body.5.weight changes"]),
        (passing, ["passing_center", "persistent=False"]),
        (grow, ["the buffer center was torch.float32 (3,)", "torch.float32 (6,)"]),
        (double, ["the buffer center was torch.float32", "torch.float64"]),
        (register, ["the buffer late comes or goes"]),
    ],
)
def test_what_another_rank_would_compute_otherwise_is_refused(act, words, refused):
    buffers = {"center": torch.zeros(3), "passing_center": torch.zeros(3)}
    with refused("model: ", *words):
        try_it(Odd(act, **buffers))


def test_the_innermost_module_that_differs_is_named(refused):
    inner = Odd(count)
    inner.body = nn.Identity()
    with refused("the module 1 (Odd)"):
        try_it(nn.Sequential(make_model(), inner))


def test_state_that_no_checkpoint_keeps_is_refused(refused):
    with refused("1._extra_state", "get_extra_state"):
        try_it(nn.Sequential(make_model(), Extra(3, 3)))
    model = make_model()
    model.register_state_dict_post_hook(
        lambda model, state, *_: state.update({"0.bias": state["0.bias"].clone()})
    )
    with refused("0.bias", "a hook"):
        try_it(model)
    model = make_model()
    model.register_state_dict_post_hook(lambda model, state, *_: state.__delitem__("0.bias"))
    with refused("has not the parameter 0.bias"):
        try_it(model)


@pytest.mark.parametrize("act", [center, lambda model, x: x])
def test_a_model_is_left_as_it_was(act):
    model = Odd(act, center=torch.zeros(3))
    before = state.digest(model.state_dict())
    tensors = list(model.buffers())
    try_it(model)
    assert state.digest(model.state_dict()) == before
    assert all(one is other for one, other in zip(model.buffers(), tensors, strict=True))
    assert all(p.grad is None for p in model.parameters())


def keep(model, x):
    model.last = model.all.append(x) or x  # as whoever looks at activations does
    return x


def test_what_modules_keep_of_a_pass_is_gone_and_copies_do_without(refused):
    model = Odd(keep)
    model.all = []
    try_it(model)
    assert not hasattr(model, "last")
    loss = model(torch.randn(2, 2, 6, 6)).sum()
    copy = copy_of(model)
    assert torch.equal(copy.last, model.last)
    assert copy.last.is_leaf
    loss.backward()


def test_passes_that_differ_are_let_be_where_no_bits_are_kept():
    model = Odd(numpy_noise).train()
    task = Classification(Run(), Normalize([0.5, 0.4], [0.3, 0.2], CPU), (2, 6, 6), CPU)
    rehearse(model, task, make_batches()[0], same=False)


def test_compiled_modules_are_rehearsed():
    try_it(nn.Sequential(make_model(), torch.jit.script(nn.Linear(3, 3))))


def test_a_model_that_is_refused_is_left_as_it_was():
    model = Odd(count)
    before = state.digest(model.state_dict())
    with pytest.raises(Exception, match="two passes"):
        try_it(model)
    assert state.digest(model.state_dict()) == before
