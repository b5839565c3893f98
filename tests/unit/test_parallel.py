"""parallel: the gradient that one rank forms shard by shard, against that of the whole batch."""

import copy
import functools

import pytest
import torch
import torch.distributed as dist
from torch import nn

from lockstep import optimizer
from lockstep import strategies as parallel
from lockstep.distributed.world import World
from lockstep.pipeline import optim
from lockstep.pipeline.config import Run
from lockstep.pipeline.tasks.classification import Classification
from lockstep.pipeline.tasks.supervised import Normalize
from lockstep.reduce.flat import Flat
from tests.unit.little import SHARDS, make_batches, make_model

CPU = torch.device("cpu")
ALONE = World(0, 1, 0, 1, "python")


@pytest.fixture(scope="module", autouse=True)
def group():
    """A process group of one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def task():
    return Classification(Run(), Normalize([0.5, 0.4], [0.3, 0.2], CPU), (2, 6, 6), CPU)


def tree(model, task):
    run = Run(strategy="single", ranks=1, shards=SHARDS, batch=12)
    return parallel.make(run, model, task, functools.partial(optim.make_optimizer, run), ALONE)


def test_the_gradient_is_that_of_the_whole_batch(task):
    ours, theirs = make_model(), make_model()
    strategy = tree(ours, task)
    for step in range(3):
        strategy.step(make_batches(step), 0.0)
        theirs.zero_grad()
        loss = task(theirs, make_batches(step))
        (loss.value / loss.items).backward()
        assert strategy.metrics.totals() == pytest.approx(loss.sums(), rel=1e-5)
        strategy.metrics.reset()
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.allclose(one.grad, other.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("norm", [False, True])  # without, a model has no buffers
@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("strategy", ["sync_sgd", "pipeline", "hybrid", "fsdp"])
def test_on_one_rank_each_strategy_has_the_bits_of_single(strategy, clip, norm):
    found = []
    for name in ("single", strategy):
        values = {"ranks": 1, "stages": 1, "shards": SHARDS, "batch": 12, "clip": clip}
        run = Run(strategy=name, optimizer="adamw", **values)
        task = Classification(run, Normalize([0.5, 0.4], [0.3, 0.2], CPU), (2, 6, 6), CPU)
        make_optimizer = functools.partial(optim.make_optimizer, run)
        model = make_model(norm=norm, dropout=True)
        made = parallel.make(run, model, task, make_optimizer, ALONE)
        for step in range(3):
            made.step(make_batches(step), 0.01)
        found.append((made.model_state(), optimizer.named(made.optimizer_state()), made.metrics))
    for one, other in zip(*(states[:2] for states in found), strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert torch.equal(found[0][2].gather(), found[1][2].gather())


def test_batchnorm_sees_each_shard_alone_and_its_statistics_are_averaged(task):
    ours = make_model(norm=True)
    alone = [copy.deepcopy(ours) for _ in range(SHARDS)]
    tree(ours, task).step(make_batches(), 0.0)
    for model, batch in zip(alone, make_batches(), strict=True):
        loss = task(model, [batch])
        (loss.value / loss.items).backward()
    for name, found in ours[1].named_buffers():
        values = torch.stack([model[1].get_buffer(name) for model in alone])
        if found.is_floating_point():
            assert torch.allclose(found, values.mean(dim=0), rtol=1e-5)
        else:
            assert found == 1  # a step is one batch, however many shards it has
    for found, *others in zip(*(m.parameters() for m in (ours, *alone)), strict=True):
        mean = torch.stack([p.grad for p in others]).mean(dim=0)
        assert torch.allclose(found.grad, mean, rtol=1e-4, atol=1e-6)


class Watching(nn.Module):
    """A model whose forward pass assigns buffers anew, and counts in integers and truth values."""

    def __init__(self, count=lambda x: 2):
        super().__init__()
        self.body, self.count = make_model(), count
        self.register_buffer("centre", torch.zeros(3))
        self.register_buffer("seen", torch.tensor(7, dtype=torch.uint8))
        self.register_buffer("begun", torch.tensor(False))
        self.register_buffer("mask", torch.tensor([0.0, float("-inf"), float("nan")]))

    def forward(self, x):
        x = self.body(x)
        self.centre = 0.5 * self.centre + x.detach().mean(0)
        self.seen = self.seen + self.count(x)
        self.begun = torch.tensor(True)
        return x


def test_buffers_that_a_pass_assigns_anew_are_averaged(task):
    ours = Watching()
    ours.centre += 1
    alone = [copy.deepcopy(ours) for _ in range(SHARDS)]
    first = ours.centre
    tree(ours, task).step(make_batches(), 0.0)
    for model, batch in zip(alone, make_batches(), strict=True):
        task(model, [batch])
    mean = torch.stack([model.centre for model in alone]).mean(dim=0)
    assert torch.allclose(ours.centre, mean, rtol=1e-5)
    assert ours.centre is first  # whoever else holds it sees it
    assert (ours.seen.item(), ours.seen.dtype) == (9, torch.uint8)
    assert ours.begun.item() is True
    assert torch.equal(ours.mask.isnan(), torch.tensor([False, False, True]))
    assert ours.mask[1] == float("-inf")


@pytest.mark.parametrize("count", [lambda x: (x[0, 0] * 1e4).byte() % 5, lambda x: 2**20])
def test_an_integer_that_has_no_mean_is_refused(task, count, refused):
    model = Watching(count)
    model.seen = model.seen.long()
    with refused("the buffer seen counts", "floating-point"):
        tree(model, task).step(make_batches(), 0.0)


def test_a_buffer_that_grows_is_refused(task, refused):
    model = Watching()
    strategy = tree(model, task)
    model.body.register_forward_hook(
        lambda *_: setattr(model, "mask", torch.cat([model.mask, model.mask]))
    )
    with refused("the buffer mask was (3,) and is (6,)"):
        strategy.step(make_batches(), 0.0)


def test_gradients_lie_as_their_parameters_do(task):
    model = make_model()
    tree(model, task).step(make_batches(), 0.0)
    assert [p.grad.stride() for p in model.parameters()] == [p.stride() for p in model.parameters()]


def test_the_same_steps_give_the_same_bits(task):
    def train():
        model = make_model(norm=True)
        strategy = tree(model, task)
        for step in range(3):
            strategy.step(make_batches(step), 0.1)
        return [value.clone() for value in model.state_dict().values()]

    assert all(map(torch.equal, train(), train()))


@pytest.mark.parametrize(
    "model",
    [
        nn.Linear(2, 2).bfloat16(),
        nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double()),
        nn.Linear(2, 2).requires_grad_(False),
    ],
    ids=["bfloat16", "mixed", "frozen"],
)
def test_a_model_of_other_types_is_refused(refused, model):
    with refused("model", "float32"):
        Flat(model)
