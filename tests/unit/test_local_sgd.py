"""local_sgd and data_parallel on one rank: replicas train apart and are averaged."""

import copy
import functools
import weakref
from collections.abc import Mapping

import pytest
import torch
import torch.distributed as dist

from lockstep import optimizer as optimizers
from lockstep import strategies as parallel
from lockstep.checkpoint.state import (
    Checkpoint,
    Progress,
    broadcast_state,
    fill,
    gather_state,
    moved,
)
from lockstep.distributed.world import World
from lockstep.pipeline import optim
from lockstep.pipeline.config import Run
from lockstep.pipeline.tasks.classification import Classification
from lockstep.pipeline.tasks.supervised import Normalize
from tests.unit.little import SHARDS, make_batches, make_model

CPU = torch.device("cpu")
ALONE = World(0, 1, 0, 1, "python")


@pytest.fixture(scope="module", autouse=True)
def group():
    """A process group of one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def make(model, **values):
    run = Run(**{"strategy": "local_sgd", "ranks": 1, "shards": SHARDS, "batch": 12, **values})
    task = Classification(run, Normalize([0.5, 0.4], [0.3, 0.2], CPU), (2, 6, 6), CPU)
    make_optimizer = functools.partial(optim.make_optimizer, run)
    return parallel.make(run, model, task, make_optimizer, ALONE), run, task


def states(strategy):
    return [copy.deepcopy(one.model.state_dict()) for one in strategy.replicas]


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def test_after_an_average_all_replicas_are_equal_and_not_before():
    strategy, *_ = make(make_model(norm=True, dropout=True), sync_every=3)
    for step in range(6):
        strategy.step(make_batches(step), 0.01)
        first, *others = states(strategy)
        assert [same(first, other) for other in others] == [step % 3 == 2] * 2


def test_the_average_is_the_mean_of_weights_and_statistics():
    apart, *_ = make(make_model(norm=True, dropout=True), sync_every=0)
    together, *_ = make(make_model(norm=True, dropout=True), sync_every=2)
    for step in range(2):
        for strategy in (apart, together):
            strategy.step(make_batches(step), 0.01)
    replicas = states(apart)
    for name, value in together.replicas[1].model.state_dict().items():
        if value.is_floating_point():
            mean = torch.stack([one[name] for one in replicas]).double().mean(dim=0)
            assert torch.allclose(value.double(), mean, rtol=1e-6, atol=1e-7)
        else:
            assert value == 2


def test_between_two_averages_the_model_is_the_mean_and_the_replicas_stay():
    strategy, *_ = make(make_model(norm=True, dropout=True), sync_every=10)
    strategy.step(make_batches(0), 0.01)
    before = states(strategy)
    found = strategy.model_state()
    assert all(map(same, before, states(strategy)))
    strategy._average()
    assert same(found, strategy.replicas[0].model.state_dict())
    assert same(found, strategy.model_state())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_replica_is_a_model_that_is_trained_on_its_shard_alone(optimizer):
    values = {"optimizer": optimizer, "clip": 0.5, "weight_decay": 0.01, "sync_every": 0}
    strategy, run, task = make(make_model(norm=True, dropout=True), **values)
    alone = make_model(norm=True, dropout=True)
    its = optim.make_optimizer(run, alone)
    for step in range(4):
        strategy.step(make_batches(step), 0.01)
        its.zero_grad()
        loss = task(alone, [make_batches(step)[1]])
        (loss.value / loss.items).backward()
        optimizers.update(its, 0.01, run.clip)
    assert same(strategy.replicas[1].model.state_dict(), alone.state_dict())
    assert same(strategy.model_state(), strategy.replicas[0].model.state_dict())
    assert not same(strategy.model_state(), alone.state_dict())
    kept = strategy.optimizer_state()
    assert kept.keys() == dict(alone.named_parameters()).keys()
    for name, state in optimizers.state_of(its, alone).items():
        for key, value in state.items():
            assert kept[name][key].shape == (SHARDS, *value.shape)
            assert torch.equal(kept[name][key][1], value)


def test_with_one_shard_it_is_single():
    values = {"shards": 1, "batch": 4, "sync_every": 1}
    one, *_ = make(make_model(dropout=True), strategy="single", **values)
    other, *_ = make(make_model(dropout=True), **values)
    for step in range(3):
        for strategy in (one, other):
            strategy.step(make_batches(step, 1), 0.01)
        assert one.metrics.totals() == other.metrics.totals()
    assert same(one.model_state(), other.model_state())


def test_plain_sgd_with_an_average_each_step_is_sync_sgd():
    values = {"optimizer": "sgd", "momentum": 0, "nesterov": False}
    one, *_ = make(make_model(norm=True, dropout=True), strategy="single", **values)
    other, *_ = make(make_model(norm=True, dropout=True), sync_every=1, **values)
    for step in range(3):
        one.step(make_batches(step), 0.1)
        other.step(make_batches(step), 0.1)
    expected = one.model_state()
    for name, value in other.model_state().items():
        assert torch.allclose(value, expected[name], rtol=1e-4, atol=1e-6)


def test_losses_are_added_for_each_shard_apart():
    strategy, _, task = make(make_model(norm=True, dropout=True))
    models = [copy.deepcopy(replica.model) for replica in strategy.replicas]
    strategy.step(make_batches(0), 0.01)
    losses = [task(m, [one]).sums() for m, one in zip(models, make_batches(0), strict=True)]
    expected = torch.tensor([list(sums.values()) for sums in losses], dtype=torch.float64)
    assert torch.equal(strategy.metrics.gather(), expected)


def test_replicas_lie_in_memory_as_the_model_did():
    model = make_model(norm=True, dropout=True)
    strides = [p.stride() for p in model.parameters()]
    strategy, *_ = make(model)
    strategy.step(make_batches(0), 0.01)
    for replica in strategy.replicas:
        assert [p.stride() for p in replica.model.parameters()] == strides
        assert [p.grad.stride() for p in replica.model.parameters()] == strides


def test_data_parallel_on_a_cpu_steps_on_the_whole_batch_and_says_so(capsys):
    strategy, run, task = make(make_model(norm=True, dropout=True), strategy="data_parallel")
    assert "CPU" in capsys.readouterr().err
    alone = make_model(norm=True, dropout=True)
    its = optim.make_optimizer(run, alone)
    for step in range(3):
        strategy.step(make_batches(step), 0.01)
        its.zero_grad()
        loss = task(alone, make_batches(step))
        (loss.value / loss.items).backward()
        optimizers.update(its, 0.01, None)
        assert strategy.metrics.totals() == loss.sums()
        strategy.metrics.reset()
    assert same(strategy.model_state(), alone.state_dict())


class Watched(Mapping):
    """Tensors that are copied when they are asked for, of which few may be there at a time."""

    def __init__(self, tensors, alive):
        self.tensors, self.alive = tensors, alive

    def __getitem__(self, name):
        assert len(self.alive) < 2  # the last one, which the loop still has
        copied = self.tensors[name].clone()
        self.alive.add(copied)
        return copied

    def __iter__(self):
        return iter(self.tensors)

    def __len__(self):
        return len(self.tensors)


def test_what_a_run_goes_on_from_is_there_one_tensor_at_a_time():
    trained, *_ = make(make_model(norm=True, dropout=True), sync_every=2, optimizer="adamw")
    for step in range(3):
        trained.step(make_batches(step), 0.01)
    saved = gather_state(trained, Progress(3, segments=[{}]), 0.0, ALONE)
    alive = weakref.WeakSet()
    found = broadcast_state(
        Checkpoint(
            saved.progress,
            Watched(saved.model, alive),
            {name: Watched(kept, alive) for name, kept in saved.optimizer.items()},
            Watched(saved.strategy, alive),
        )
    )
    model = make_model(norm=True, dropout=True)
    fill(model, found.model)
    other, *_ = make(model, sync_every=2, optimizer="adamw")
    other.load(found.optimizer, found.strategy)
    assert all(map(same, states(trained), states(other)))
    for step in (3, 4):
        for strategy in (trained, other):
            strategy.step(make_batches(step), 0.01)
    assert all(map(same, states(trained), states(other)))
    ours, theirs = other.optimizer_state(), trained.optimizer_state()
    assert all(same(ours[name], theirs[name]) for name in theirs)


def test_what_is_saved_is_let_go_as_it_is_copied():
    alive = weakref.WeakSet()

    def fresh():
        tensor = torch.ones(3)
        alive.add(tensor)
        return tensor

    taken = {name: fresh() for name in "abc"}
    copies = moved(taken, ALONE)
    assert not alive
    assert list(copies) == list("abc")
    assert moved({"a": torch.ones(1)}, World(1, 2, 1, 2, "python")) == {}
