"""optim: learning rates are those of torch's schedules, and only weights decay."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim import lr_scheduler

from lockstep.pipeline.config import Run
from lockstep.pipeline.optim import learning_rate, make_optimizer


def rates(run, steps):
    return [learning_rate(run, step, steps) for step in range(run.epochs * steps)]


def by_torch(run, steps, make):
    """Return the learning rates that a scheduler of torch's gives, one a step."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=run.lr)
    scheduler = make(optimizer)
    found = []
    for _ in range(run.epochs * steps):
        if found:
            optimizer.step()
            scheduler.step()
        found.append(optimizer.param_groups[0]["lr"])
    return found


SHAPES = [(1, 1), (1, 2), (1, 3), (2, 2), (1, 10), (3, 7), (20, 11)]


def make_run(epochs, **values):
    return Run(epochs=epochs, snapshots=1, lr=0.3, **values)


@pytest.mark.parametrize(("epochs", "steps"), SHAPES)
def test_onecycle_is_torchs(epochs, steps):
    run = make_run(epochs, schedule="onecycle")

    def make(optimizer):
        return lr_scheduler.OneCycleLR(
            optimizer, max_lr=run.lr, total_steps=epochs * steps, cycle_momentum=False
        )

    expected = by_torch(run, steps, make)
    assert rates(run, steps) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("epochs", "steps"), SHAPES)
def test_cosine_is_torchs(epochs, steps):
    run = make_run(epochs, schedule="cosine")
    expected = by_torch(
        run, steps, lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=epochs * steps)
    )
    assert rates(run, steps) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("epochs", "steps"), SHAPES)
@pytest.mark.parametrize(("drop", "gamma"), [(1, 0.5), (2, 0.1), (7, 0.3)])
def test_step_is_torchs(epochs, steps, drop, gamma):
    run = make_run(epochs, schedule="step", step_epochs=drop, step_gamma=gamma)
    expected = by_torch(run, steps, lambda o: lr_scheduler.StepLR(o, drop * steps, gamma))
    assert rates(run, steps) == pytest.approx(expected, rel=1e-12)


def test_constant_is_constant():
    assert set(rates(make_run(3, schedule="constant"), 5)) == {0.3}


@pytest.mark.parametrize("schedule", ["constant", "cosine", "step"])
def test_warmup_rises_evenly_to_the_full_rate(schedule):
    run = make_run(4, schedule=schedule, warmup=2, step_epochs=10)
    found = rates(run, 5)
    assert found[:10] == pytest.approx([0.3 * (step + 1) / 10 for step in range(10)])
    assert found[9] == found[10] == 0.3


def test_cosine_goes_on_from_the_end_of_the_warmup():
    run = make_run(5, schedule="cosine", warmup=2)
    assert rates(run, 4)[8:] == pytest.approx(rates(make_run(3, schedule="cosine"), 4))


def test_onecycle_has_a_rise_of_its_own():
    assert rates(make_run(4, warmup=2), 5) == rates(make_run(4), 5)


@given(
    st.sampled_from(["constant", "step", "cosine", "onecycle"]),
    st.integers(1, 12),
    st.integers(1, 20),
    st.floats(0, 1),
)
def test_no_rate_is_negative_or_above_the_peak(schedule, epochs, steps, share):
    run = make_run(epochs, schedule=schedule, warmup=share * epochs)
    assert all(0 < rate <= 0.3 for rate in rates(run, steps))


def model():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_only_weights_of_more_than_one_dimension_decay(name):
    network = model()
    optimizer = make_optimizer(Run(optimizer=name, weight_decay=0.1), network)
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert decay == {id(p): 0.1 if p.ndim > 1 else 0.0 for p in network.parameters()}


def test_everything_decays_where_it_is_asked_for():
    network = model()
    optimizer = make_optimizer(Run(weight_decay=0.1, decay_norm_bias=True), network)
    (group,) = optimizer.param_groups
    assert group["weight_decay"] == 0.1
    assert {id(p) for p in group["params"]} == {id(p) for p in network.parameters()}


def test_frozen_parameters_are_left_out():
    network = model()
    network[0].requires_grad_(False)
    optimizer = make_optimizer(Run(), network)
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert known == {id(p) for p in network.parameters() if p.requires_grad}


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_a_step_is_that_of_torchs_optimizer(name):
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    extra = {"momentum": 0.8, "nesterov": True} if name == "sgd" else {}
    run = Run(optimizer=name, lr=0.1, weight_decay=0.1, decay_norm_bias=True, momentum=0.8)
    torch.manual_seed(0)
    ours, theirs = nn.Linear(6, 3), nn.Linear(6, 3)
    theirs.load_state_dict(ours.state_dict())
    optimizers = (
        make_optimizer(run, ours),
        kinds[name](theirs.parameters(), lr=0.1, weight_decay=0.1, **extra),
    )
    for _ in range(3):
        images = torch.randn(4, 6)
        for network, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            network(images).square().sum().backward()
            optimizer.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-7)
