"""The library in one's own loop, on one process: what it gives, and what it refuses."""

import contextlib
import itertools
import json
import random
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.optim import lr_scheduler

import __main__
import lockstep
from lockstep import UserError
from lockstep.step import means
from lockstep.testing import faults

SAMPLES, BATCH, SHARDS = 48, 16, 4
X = torch.randn(SAMPLES, 6, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def plain(model, shard) -> None:
    """Do what a loop over shards is to do."""
    shard.backward(F.cross_entropy(model(X[shard.ids]), Y[shard.ids], reduction="sum"), 4)


class Loop:
    """A training that one may see and change at each place.

    Args:
        inside: what is done with a shard, of (loop, shard).
        after: what is done after a step's shards, of (loop, step).
    """

    def __init__(
        self, folder, make=net, optimizer=sgd, scheduler=lambda one: (), inside=None, after=None,
        epochs=1, **options,
    ):  # fmt: skip
        self.grads: list[dict[str, torch.Tensor | None]] = []
        self.metrics = []
        with lockstep.init(shards=SHARDS, seed=1) as self.session:
            self.model = self.session.build(make)
            self.optimizer = optimizer(self.model)
            self.scheduler = scheduler(self.optimizer)
            schedulers = self.scheduler
            self.run = self.session.run(
                self.model, self.optimizer, folder, scheduler=schedulers, **options
            )
            for step in self.run.steps(SAMPLES, BATCH, epochs):
                for shard in step:
                    (inside or (lambda loop, shard: plain(loop.model, shard)))(self, shard)
                self.ids = step._run.sampler
                self.metrics.append(dict(step.metrics))
                self.grads.append(
                    {
                        name: None if p.grad is None else p.grad.clone()
                        for name, p in self.model.named_parameters()
                    }
                )
                if after:
                    after(self, step)
                else:
                    self.optimizer.step()


# What is refused, and what the line has in it.


def its(loss, items=4):
    """Return what calls backward on a loss of (logits, targets)."""

    def inside(loop, shard):
        shard.backward(loss(loop.model(X[shard.ids]), Y[shard.ids]), items)

    return inside


def without_backward(loop, shard):
    loop.model(X[shard.ids])


def backward_by_hand(loop, shard):
    F.cross_entropy(loop.model(X[shard.ids]), Y[shard.ids], reduction="sum").backward()


def a_step_inside(loop, shard):
    plain(loop.model, shard)
    loop.optimizer.step()


def an_old_shard(loop, shard):
    first = loop.__dict__.setdefault("first", shard)
    plain(loop.model, first)


def other_metrics(loop, shard):
    loss = F.cross_entropy(loop.model(X[shard.ids]), Y[shard.ids], reduction="sum")
    shard.backward(loss, 4, **{f"shard_{shard.index}": 1.0})


def a_counter(loop, shard):
    loop.count = getattr(loop, "count", 0) + 1
    shard.backward(
        F.cross_entropy(loop.model(X[shard.ids]) * loop.count, Y[shard.ids], reduction="sum"), 4
    )


def zero_grad_between(loop, shard):
    plain(loop.model, shard)
    loop.optimizer.zero_grad()
    plain(loop.model, shard)


def zero_grad_after(loop, shard):
    plain(loop.model, shard)
    loop.optimizer.zero_grad()


def a_gradient_of_its_own(loop, shard):
    loop.model[2].bias.grad = torch.zeros(2)
    plain(loop.model, shard)


def clamped(loop, shard):
    plain(loop.model, shard)
    with torch.no_grad():
        loop.model[2].weight.clamp_(-10, 10)  # which changes nothing yet


def noisy(draw):
    def inside(loop, shard):
        noise = torch.as_tensor(draw(), dtype=torch.float32)
        shard.backward((loop.model(X[shard.ids]) * noise).sum(), 4)

    return inside


class Remembers(nn.Module):
    """It keeps an average in an attribute that is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.mean = nn.Linear(6, 2), 0.0

    def forward(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.mean().item()
        return self.linear(x - self.mean)


class Forgets(nn.Module):
    """It counts in a buffer that no state_dict has."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 2)
        self.register_buffer("seen", torch.zeros(()), persistent=False)

    def forward(self, x):
        self.seen += x.mean().detach()
        return self.linear(x - self.seen)


class Counts(nn.Linear):
    """It keeps a count by get_extra_state."""

    def get_extra_state(self):
        return torch.tensor(0)

    def set_extra_state(self, state):
        pass


class Copies(nn.Linear):
    """Its state_dict has copies, which a checkpoint would be loaded into."""

    def state_dict(self, *words, **options):
        return {name: t.clone() for name, t in super().state_dict(*words, **options).items()}


class OfItsOwn(nn.Module):
    """It returns its loss, a mean, as language models of Hugging Face's do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 2)

    def forward(self, x, labels):
        return {"loss": F.cross_entropy(self.linear(x), labels)}


class Lowest(nn.Module):
    """It keeps the lowest input, beginning with infinity, beside a mask that stays infinite."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 2)
        self.register_buffer("mask", torch.full((2,), float("-inf")))
        self.register_buffer("low", torch.tensor(float("inf")))

    def forward(self, x):
        self.low = torch.minimum(self.low, x.detach().min())
        return self.linear(x)


class Biased(nn.Module):
    """It has a table that does not change, with a negative zero in it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 2)
        self.register_buffer("table", torch.tensor([-0.0, -1.0]), persistent=False)

    def forward(self, x):
        return self.linear(x) + self.table


def its_own(loop, shard):
    shard.backward(loop.model(X[shard.ids], Y[shard.ids])["loss"], 4)


def unfreeze(loop, step):
    loop.optimizer.step()
    loop.model[0].weight.requires_grad_(True)


def frozen_net() -> nn.Module:
    model = net()
    model[0].weight.requires_grad_(False)
    return model


def a_forgotten_scheduler(model):
    optimizer = sgd(model)
    lr_scheduler.CyclicLR(optimizer, 0.01, 0.1)
    return optimizer


def a_scheduler_made_later(loop, step):
    loop.optimizer.step()
    lr_scheduler.StepLR(loop.optimizer, 2)


def a_forgotten_optimizer(loop, step):
    loop.optimizer.step()
    adam(loop.model[2]).step()


def count_metrics(loop, shard):
    loss = F.cross_entropy(loop.model(X[shard.ids]), Y[shard.ids], reduction="sum")
    shard.backward(loss, 4, **({"more": 1.0} if loop.metrics else {}))


REFUSED = {
    "an optimizer step inside": (
        {"inside": a_step_inside},
        "step 1: optimizer.step() before the gradients are reduced; let the loop",
    ),
    "backward by hand": (
        {"inside": backward_by_hand},
        "step 1: a backward pass gives 2.bias a gradient outside of shard.backward(loss, items)",
    ),
    "no backward": (
        {"inside": without_backward},
        "step 1, shard 0: shard.backward(loss, items) was not called",
    ),
    "zero_grad() between two losses": (
        {"inside": zero_grad_between},
        "step 1, shard 0: the gradient of 0.weight is not the one that shard.backward adds to",
    ),
    "zero_grad() after the loss": ({"inside": zero_grad_after}, "the gradient of 0.weight is not"),
    "another gradient": ({"inside": a_gradient_of_its_own}, "the gradient of 2.bias is not the"),
    "weights that change in the loop over shards": (
        {"inside": clamped},
        "step 1: 2.weight was changed in the loop over shards",
    ),
    "an old shard": ({"inside": an_old_shard}, "when it is not this shard's turn any more"),
    "a mean": (
        {"inside": its(F.cross_entropy)},
        "loss: step 1, shard 0: is a mean (NllLossBackward0)",
    ),
    "a smoothed mean": (
        {"inside": its(lambda x, y: F.cross_entropy(x, y, label_smoothing=0.1))},
        "is a mean",
    ),
    "half a mean": (
        {"inside": its(lambda x, y: 0.5 * F.mse_loss(x[:, 0], y.float()))},
        "is a mean",
    ),
    "mean()": ({"inside": its(lambda x, y: x.square().mean())}, "is a mean (MeanBackward0)"),
    "a mean and a sum": (
        {"inside": its(lambda x, y: F.cross_entropy(x, y) + x.square().sum())},
        "is a mean",
    ),
    "a model's own loss": (
        {
            "make": OfItsOwn,
            "inside": its_own,
        },
        'give the sum (reduction="sum") and its items',
    ),
    "no scalar": (
        {"inside": its(lambda x, y: F.cross_entropy(x, y, reduction="none"))},
        "expected one number, the sum over the items, not (4,); take its sum()",
    ),
    "no tensor": ({"inside": its(lambda x, y: x.sum().item())}, "not float; take its sum()"),
    "not a number": (
        {"inside": its(lambda x, y: x.sum() * float("nan"))},
        "is nan; nothing of this step is kept",
    ),
    "items that are not whole": (
        {"inside": its(lambda x, y: x.sum(), items=2.5)},
        "items: step 1, shard 0: expected how many samples or tokens the loss is the sum over",
    ),
    "no items": ({"inside": its(lambda x, y: x.sum(), items=0)}, "step 1: no shard has any items"),
    "metrics by shard": (
        {"inside": other_metrics},
        "metrics: shard 1 has loss, items of loss, shard_1, and shards had loss, items of loss,",
    ),
    "metrics by step": ({"inside": count_metrics}, "metrics: step 2 has loss, items of loss, more"),
    "an optimizer of another model": (
        {"optimizer": lambda model: torch.optim.SGD(nn.Linear(3, 5).parameters(), lr=0.1)},
        "optimizer: SGD has a parameter of shape (5, 3) that is none of the model's",
    ),
    "a scheduler that is not given": (
        {"optimizer": a_forgotten_scheduler},
        "scheduler: SGD has one (initial_lr is in its param_groups) that was not given to the run",
    ),
    "a scheduler that is made later": (
        {"after": a_scheduler_made_later},
        "scheduler: SGD has one (initial_lr is in its param_groups) that was not given to the run",
    ),
    "an optimizer that is not given": (
        {
            "optimizer": lambda model: sgd(model[0]),
            "after": a_forgotten_optimizer,
        },
        "step 1: Adam.step() of an optimizer that was not given to the run",
    ),
    "two optimizers of one parameter": (
        {"optimizer": lambda model: [sgd(model), adam(model[2])]},
        "optimizer: 2.weight is trained by optimizers 1 and 2 of the run (Adam), and a checkpoint",
    ),
    "unfrozen later": (
        {
            "make": frozen_net,
            "after": unfreeze,
            "optimizer": lambda m: torch.optim.SGD(m[2].parameters(), lr=0.1),
        },
        "model: 0.weight is new, or was not trained, when the run was made",
    ),
    "nothing to train": (
        {"make": lambda: net().requires_grad_(False)},
        "model: it has no parameter that is trained",
    ),
    "bfloat16": ({"make": lambda: net().bfloat16()}, "expected float32, or float64, throughout"),
    "a scheduler that no JSON keeps": (
        {"scheduler": lambda one: Unkept()},
        "scheduler: has object in its state, which no checkpoint keeps",
    ),
    "a buffer that no checkpoint keeps": (
        {"make": Forgets},
        "model: the buffer seen changes in training, and is not in the state_dict",
    ),
    "a buffer that begins with infinity": (
        {"make": Lowest},
        "model: the buffer low is no number after a step; it takes the mean of what shards changed",
    ),
    "extra state": (
        {"make": lambda: Counts(6, 2)},
        "model: its state_dict has _extra_state, which is no parameter and no buffer",
    ),
    "a state_dict of copies": (
        {"make": lambda: Copies(6, 2)},
        "model: its state_dict has not the parameter weight",
    ),
    "no checkpoint kept": (
        {"checkpoint_keep": 0},
        "checkpoint_keep: expected 1 checkpoint or more, not 0",
    ),
    "an attribute": (
        {"make": Remembers},
        "shard 0: done twice from the same state, the gradient of linear.weight",
    ),
    "a counter": ({"inside": a_counter}, "done twice from the same state"),
    "an iterator": (
        {"inside": noisy(itertools.count().__next__)},
        "done twice from the same state",
    ),
    "NumPy": ({"inside": noisy(np.random.rand)}, "NumPy's or Python's random"),
    "Python": ({"inside": noisy(random.random)}, "NumPy's or Python's random"),
    "the clock": ({"inside": noisy(lambda: time.time() % 1)}, "the clock"),
}


class Unkept:
    def state_dict(self):
        return {"what": object()}


@pytest.mark.parametrize("case", REFUSED)
def test_what_breaks_the_promise_is_refused_where_it_happens(case, tmp_path):
    options, said = REFUSED[case]
    with pytest.raises(UserError) as error:
        Loop(tmp_path, **options)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def steps(folder, samples=SAMPLES, batch=BATCH, epochs=1, leave=False):
    with lockstep.init(shards=SHARDS, seed=1) as session:
        model = session.build(net)
        run = session.run(model, sgd(model), folder)
        for step in run.steps(samples, batch, epochs):
            for shard in step:
                plain(model, shard)
                if leave:
                    break


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"samples": 8}, "steps: expected at least a batch of samples and an epoch, not 8 samples"),
        ({"epochs": 0}, "a batch of 16 and 0 epochs"),
        ({"batch": 18}, "batch: 4 shards cannot share a batch of 18 evenly; take 16"),
        ({"samples": 19, "batch": 20}, "not 19 samples"),
        ({"leave": True}, "step 1: the loop over its shards has not come to its end"),
    ],
)
def test_what_cannot_be_shared_is_refused(numbers, said, tmp_path):
    with pytest.raises(UserError) as error:
        steps(tmp_path, **numbers)
    assert said in str(error.value)


def test_a_session_says_which_numbers_it_wants():
    with pytest.raises(UserError, match="init: expected shards from 1 and a seed from 0, not 0"):
        lockstep.init(shards=0)


def test_there_is_no_hash_before_the_end(tmp_path):
    with lockstep.init(shards=SHARDS) as session:
        model = session.build(net)
        run = session.run(model, sgd(model), tmp_path)
        with pytest.raises(UserError, match="not at its end"):
            _ = run.sha256


# What it computes, beside plain torch.


def gradients_of(model: nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor | None]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters()}


def whole(loop: Loop, number: int = 0) -> torch.Tensor:
    """Return the ids of a step over all shards."""
    ids = [loop.ids.ids(0, number, shard) for shard in range(SHARDS)]
    return torch.from_numpy(np.concatenate(ids))


def fresh(make=net) -> nn.Module:
    with lockstep.init(shards=SHARDS, seed=1) as session:
        return session.build(make)


def test_the_gradient_is_that_of_the_whole_batch(tmp_path):
    loop = Loop(tmp_path)
    model, ids = fresh(), whole(loop)
    loss = F.cross_entropy(model(X[ids]), Y[ids])
    for name, grad in gradients_of(model, loss).items():
        torch.testing.assert_close(loop.grads[0][name], grad)
    assert loop.metrics[0]["loss"] == pytest.approx(loss.item())


@pytest.mark.parametrize("to_none", [True, False])
def test_zero_grad_before_the_backward_pass_changes_nothing(to_none, tmp_path):
    def inside(loop, shard):
        loop.optimizer.zero_grad(set_to_none=to_none)
        plain(loop.model, shard)

    loop = Loop(tmp_path / "a", inside=inside)
    assert loop.run.sha256 == Loop(tmp_path / "b").run.sha256


def test_a_table_with_a_negative_zero_is_not_taken_to_change(tmp_path):
    assert Loop(tmp_path, make=Biased).model.table.signbit().all()


LENGTHS = torch.randint(1, 6, (SAMPLES,), generator=torch.Generator().manual_seed(1))
REAL = torch.arange(6) < LENGTHS.unsqueeze(1)


def of_tokens(model, ids, reduction):
    targets = torch.where(REAL[ids], X[ids].sign().long().clamp(0), -100)
    logits = model(X[ids]).unsqueeze(1) * torch.ones(1, 6, 1)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction=reduction)


def test_sequences_of_unequal_length_count_by_their_tokens(tmp_path):
    def inside(loop, shard):
        shard.backward(of_tokens(loop.model, shard.ids, "sum"), items=REAL[shard.ids].sum())

    loop = Loop(tmp_path, inside=inside)
    model, ids = fresh(), whole(loop)
    for name, grad in gradients_of(model, of_tokens(model, ids, "mean")).items():
        torch.testing.assert_close(loop.grads[0][name], grad)


def test_a_step_is_that_of_plain_torch(tmp_path):
    loop = Loop(tmp_path)
    model = fresh()
    optimizer = sgd(model)
    for number in range(SAMPLES // BATCH):
        ids = whole(loop, number)
        gradients_of(model, F.cross_entropy(model(X[ids]), Y[ids]))
        optimizer.step()
    for mine, its in zip(loop.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, its)
    assert loop.run.history[0]["epoch"] == 1
    assert loop.run.history[0]["loss"] == pytest.approx(
        sum(metrics["loss"] for metrics in loop.metrics) / len(loop.metrics)
    )


def test_losses_add_up(tmp_path):
    def inside(loop, shard):
        logits, y = loop.model(X[shard.ids]), Y[shard.ids]
        shard.backward(F.cross_entropy(logits, y, reduction="sum"), items=4)
        logits = loop.model(X[shard.ids])
        shard.backward(0.1 * logits.square().sum(), items=0, name="size")

    loop = Loop(tmp_path, inside=inside)
    model, ids = fresh(), whole(loop)
    logits = model(X[ids])
    loss = F.cross_entropy(logits, Y[ids]) + 0.1 * logits.square().sum() / len(ids)
    for name, grad in gradients_of(model, loss).items():
        torch.testing.assert_close(loop.grads[0][name], grad)
    size = 0.1 * logits.square().sum().item() / len(ids)
    assert loop.metrics[0]["size"] == pytest.approx(size)
    all_sizes = [metrics["size"] for metrics in loop.metrics]
    assert loop.run.history[0]["size"] == pytest.approx(sum(all_sizes) / len(all_sizes))


def test_a_loss_without_items_is_over_those_of_its_pass():
    one = {"a": 6.0, "items of a": 2.0, "b": 6.0, "items of b": 1.0, "c": 6.0, "items of c": 0.0}
    other = {"d": 6.0, "items of d": 6.0, "right": 3.0, "e": 6.0, "items of e": 0.0, "more": 3.0}
    expected = {"a": 3.0, "b": 6.0, "c": 2.0, "d": 1.0, "right": 0.5, "e": 1.0, "more": 0.5}
    assert means(one | other, [one, other]) == expected
    assert means(one) == {"a": 3.0, "b": 6.0, "c": 2.0}


def test_what_is_frozen_stays_and_has_no_gradient(tmp_path):
    loop = Loop(tmp_path, make=frozen_net)
    assert torch.equal(loop.model[0].weight, fresh()[0].weight)
    assert loop.grads[0]["0.weight"] is None
    assert not torch.equal(loop.model[0].bias, fresh()[0].bias)


class Unused(nn.Module):
    """It has a parameter that it never uses, and one that it uses for some samples alone."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.never = nn.Linear(6, 2), nn.Parameter(torch.ones(3))
        self.sometimes = nn.Parameter(torch.ones(2))

    def forward(self, x, sometimes):
        return self.linear(x) * (self.sometimes if sometimes else 1)


def test_a_parameter_that_no_shard_uses_has_no_gradient(tmp_path):
    def inside(loop, shard):
        logits = loop.model(X[shard.ids], sometimes=shard.index == 2)
        shard.backward(F.cross_entropy(logits, Y[shard.ids], reduction="sum"), 4)

    def adamw(model):
        return torch.optim.AdamW(model.parameters(), weight_decay=0.5)

    loop = Loop(tmp_path, make=Unused, inside=inside, optimizer=adamw)
    assert loop.grads[0]["never"] is None
    assert torch.equal(loop.model.never, torch.ones(3))  # no decay either
    assert loop.grads[0]["sometimes"].abs().sum() > 0


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(6, 6), nn.Linear(6, 6)
        self.head.weight = self.inner.weight

    def forward(self, x):
        return self.head(self.inner(x).tanh())


def test_tied_weights_are_one(tmp_path):
    loop = Loop(tmp_path, make=Tied)
    assert loop.model.head.weight is loop.model.inner.weight
    model, ids = fresh(Tied), whole(loop)
    for name, grad in gradients_of(model, F.cross_entropy(model(X[ids]), Y[ids])).items():
        torch.testing.assert_close(loop.grads[0][name], grad)


def test_clipping_is_of_the_whole_batch(tmp_path):
    norms = []

    def after(loop, step):
        before = torch.cat([p.grad.flatten() for p in loop.model.parameters()]).norm()
        norms.append((before, step.clip(0.01)))
        after = torch.cat([p.grad.flatten() for p in loop.model.parameters()]).norm()
        assert after.item() == pytest.approx(0.01, rel=1e-3)
        loop.optimizer.step()

    Loop(tmp_path, after=after)
    for one, other in norms:
        torch.testing.assert_close(one, other)


def test_bfloat16_by_autocast(tmp_path):
    def inside(loop, shard):
        with torch.autocast("cpu", torch.bfloat16):
            logits = loop.model(X[shard.ids])
        assert logits.dtype == torch.bfloat16
        shard.backward(F.cross_entropy(logits.float(), Y[shard.ids], reduction="sum"), 4)

    loop = Loop(tmp_path / "a", inside=inside)
    exact = Loop(tmp_path / "b")
    for name, grad in exact.grads[0].items():
        torch.testing.assert_close(loop.grads[0][name], grad, rtol=0.1, atol=0.01)
    assert loop.grads[0]["0.weight"].dtype == torch.float32


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))


def test_batch_norm_takes_the_mean_of_what_shards_saw(tmp_path):
    loop = Loop(tmp_path, make=normed)
    first = fresh(normed)
    mean = torch.zeros(8)
    x = [loop.ids.ids(0, 0, shard) for shard in range(SHARDS)]
    with torch.no_grad():
        mean = torch.stack([0.1 * first[0](X[ids]).mean(0) for ids in x]).mean(0)
    seen = []

    def after(loop, step):
        seen.append(loop.model[1].running_mean.clone())
        loop.optimizer.step()

    again = Loop(tmp_path / "again", make=normed, after=after)
    torch.testing.assert_close(seen[0], mean)
    assert again.run.sha256 == loop.run.sha256
    assert loop.model[1].num_batches_tracked == 3


def test_another_number_of_passes_than_before_is_refused(tmp_path):
    def after(loop, step):
        loop.optimizer.step()
        if step.number == 1:
            for shard in step:
                loss = F.cross_entropy(loop.model(X[shard.ids]), Y[shard.ids], reduction="sum")
                shard.backward(loss, 4, name="again")
            loop.optimizer.step()

    said = "metrics: a step has loss, items of loss, again, items of again, and steps had loss, "
    with pytest.raises(UserError, match=said):
        Loop(tmp_path, after=after)


def test_random_numbers_are_a_shards_own(tmp_path):
    drawn = {}

    def inside(loop, shard):
        drawn.setdefault(shard.index, set()).add(tuple(torch.rand(2).tolist()))
        plain(loop.model, shard)

    Loop(tmp_path / "a", inside=inside)
    first = dict(drawn)
    drawn.clear()
    torch.manual_seed(5)  # which is nothing to it
    Loop(tmp_path / "b", inside=inside)
    assert drawn == first
    assert len(set.union(*first.values())) == 3 * SHARDS  # the rehearsal draws what counts later


def test_two_optimizers_and_two_passes(tmp_path):
    draws = [[], []]
    with lockstep.init(shards=SHARDS, seed=1) as session:
        one, other = session.build(net), session.build(net)
        assert not torch.equal(one[0].weight, other[0].weight)
        optimizers = [sgd(one), sgd(other)]
        run = session.run({"one": one, "other": other}, optimizers, tmp_path)
        for step in run.steps(SAMPLES, BATCH, 1):
            for shard in step:
                draws[0].append(torch.rand(1).item())
                plain(one, shard)
            assert other[0].weight.grad is None
            optimizers[0].step()
            for shard in step:
                draws[1].append(torch.rand(1).item())
                both = other(one(X[shard.ids]) @ torch.ones(2, 6))
                loss = F.cross_entropy(both, Y[shard.ids], reduction="sum")
                shard.backward(loss, 4, name="second")
            assert other[0].weight.grad.any()
            optimizers[1].step()
            assert step.metrics.keys() == {"loss", "second"}
    assert run.history[0].keys() == {"epoch", "loss", "second"}
    assert not {*draws[0]} & {*draws[1]}


# Going on.


def fail_at(monkeypatch, step: int) -> None:
    monkeypatch.setattr(faults, "WANTED", f"step:{step}:0:raise")


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=0.01)


SCHEDULERS = {
    "OneCycleLR": lambda one: lr_scheduler.OneCycleLR(one, 0.1, total_steps=13),
    "LambdaLR": lambda one: lr_scheduler.LambdaLR(one, lambda step: 0.9**step),
    "SequentialLR": lambda one: lr_scheduler.SequentialLR(
        one,
        [
            lr_scheduler.LinearLR(one, 0.1, total_iters=3),
            lr_scheduler.CosineAnnealingLR(one, T_max=9),
        ],
        milestones=[4],
    ),
    "ReduceLROnPlateau": lambda one: lr_scheduler.ReduceLROnPlateau(one, patience=1, threshold=0.5),
}


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_a_run_goes_on_to_the_same_bits(kind, tmp_path, monkeypatch):
    def after(loop, step):
        loop.optimizer.step()
        plateau = [step.metrics["loss"]] if kind == "ReduceLROnPlateau" else []
        loop.scheduler.step(*plateau)

    options = {
        "make": normed, "optimizer": adam, "scheduler": SCHEDULERS[kind], "after": after,
        "epochs": 4, "checkpoint_every": "5 steps",
    }  # fmt: skip
    whole = Loop(tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        fail_at(patch, 7)
        with pytest.raises(RuntimeError, match="on demand"):
            Loop(tmp_path / "cut", **options)
    rest = Loop(tmp_path / "cut", **options)
    assert len(rest.metrics) == 7  # of 12 steps: it goes on after the 5th
    assert rest.run.sha256 == whole.run.sha256
    assert rest.scheduler.state_dict() == whole.scheduler.state_dict()
    assert rest.run.history == whole.run.history
    record = json.loads(Path(tmp_path, "cut", "run.json").read_text())
    assert [part["first_step"] for part in record["segments"]] == [0, 5]


def freeze(model):
    model[0].requires_grad_(False)


def eval_of_a_part(model):
    model[1:3].eval()  # the statistics of BatchNorm, and no dropout


@pytest.mark.parametrize("change", [freeze, eval_of_a_part])
def test_what_is_frozen_or_in_eval_in_between_is_so_after_a_kill(change, tmp_path, monkeypatch):
    def after(loop, step):
        loop.optimizer.step()
        if step.number == 2:
            change(loop.model)

    options = {
        "make": normed, "optimizer": adam, "after": after, "epochs": 4,
        "checkpoint_every": "5 steps",
    }  # fmt: skip
    whole = Loop(tmp_path / "whole", **options)
    with contextlib.suppress(RuntimeError), monkeypatch.context() as patch:
        fail_at(patch, 7)
        Loop(tmp_path / "cut", **options)
    rest = Loop(tmp_path / "cut", **options)
    assert len(rest.metrics) == 7
    assert rest.run.sha256 == whole.run.sha256
    assert rest.run.strategy.modes() == whole.run.strategy.modes()


def test_what_the_loop_keeps_and_where_it_stops_survive_a_kill(tmp_path, monkeypatch, capfd):
    def after(loop, step):
        loop.optimizer.step()
        if step.ends_epoch:
            kept = loop.run.state
            kept["epochs"] = [*kept.get("epochs", []), (step.epoch, step.metrics["loss"])]
            if len(kept["epochs"]) == 3:
                loop.run.stop()

    options = {"after": after, "epochs": 9, "checkpoint_every": "2 steps"}
    whole = Loop(tmp_path / "whole", **options)
    with contextlib.suppress(RuntimeError), monkeypatch.context() as patch:
        fail_at(patch, 7)
        Loop(tmp_path / "cut", **options)
    rest = Loop(tmp_path / "cut", **options)
    assert rest.run.state == whole.run.state
    assert [epoch for epoch, _ in whole.run.state["epochs"]] == [0, 1, 2]
    assert rest.run.sha256 == whole.run.sha256
    assert len(rest.run.history) == 3
    capfd.readouterr()
    again = Loop(tmp_path / "cut", **options)
    assert (again.metrics, again.run.sha256) == ([], whole.run.sha256)
    assert "all steps are done already: nothing is trained" in capfd.readouterr().err


def test_steps_that_are_left_before_their_end_write_nothing_and_say_so(tmp_path):
    with (
        pytest.raises(UserError, match=r"left before their end.*call run.stop\(\) on all ranks"),
        lockstep.init(shards=SHARDS) as session,
    ):
        model = session.build(net)
        optimizer = sgd(model)
        for step in session.run(model, optimizer, tmp_path).steps(SAMPLES, BATCH, 2):
            for shard in step:
                plain(model, shard)
            optimizer.step()
            break
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("leave", [True, False])
def test_the_steps_of_a_run_are_taken_once(leave, tmp_path):
    with (
        pytest.raises(UserError, match=r"were taken before; expected one loop.*session.run\("),
        lockstep.init(shards=SHARDS) as session,
    ):
        model = session.build(net)
        optimizer = sgd(model)
        run = session.run(model, optimizer, tmp_path)
        for _ in range(2):
            for step in run.steps(SAMPLES, BATCH, 1):
                for shard in step:
                    plain(model, shard)
                optimizer.step()
                if leave:
                    break


def test_other_arguments_are_said_where_no_configuration_is_given(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("sys.argv", ["train.py", "--shift=1"])
    Loop(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py", "--shift=2"])
    Loop(tmp_path)
    assert "other arguments: they were --shift=1, and are --shift=2; give" in capfd.readouterr().err
    Loop(tmp_path / "given", configuration={"shift": 2})
    monkeypatch.setattr("sys.argv", ["train.py"])
    Loop(tmp_path / "given", configuration={"shift": 2})
    assert "with other arguments" not in capfd.readouterr().err


def test_a_model_that_no_build_has_made_is_named(tmp_path, capfd):
    with lockstep.init(shards=SHARDS) as session:
        model = net()
        session.run(model, sgd(model), tmp_path)
    assert "model: 0.weight is not of session.build" in capfd.readouterr().err


def test_another_learning_rate_is_said_in_few_words(tmp_path, capfd):
    Loop(tmp_path, checkpoint_every="1 steps")
    Loop(tmp_path, optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.2))
    said = capfd.readouterr().err
    assert (
        "checkpoints of another run, not used: lr was 0.1, is 0.2, momentum was 0.9, is 0" in said
    )


def test_another_configuration_is_another_run(tmp_path, monkeypatch):
    with contextlib.suppress(RuntimeError), monkeypatch.context() as patch:
        fail_at(patch, 2)
        Loop(tmp_path, checkpoint_every="1 steps")
    slower = Loop(tmp_path, optimizer=adam)
    assert len(slower.metrics) == 3
    named = Loop(tmp_path, optimizer=adam, configuration={"augmentation": "none"})
    assert len(named.metrics) == 3
    assert "augmentation" in json.loads((tmp_path / "run.json").read_text())["configuration"]


def test_a_configuration_is_none_of_the_runs_own_settings(tmp_path):
    for batch in (5, 7):
        Loop(tmp_path, configuration={"batch": batch, "threads": 9})
        record = json.loads((tmp_path / "run.json").read_text())
        assert record["configuration"] == {"batch": batch, "threads": 9}
        assert (record["settings"]["batch"], record["settings"]["threads"]) == (BATCH, 1)
    assert len([*Path(tmp_path, "checkpoints").glob("*/about.json")]) == 2  # two runs


def test_a_script_may_come_from_a_pipe(tmp_path, monkeypatch):
    monkeypatch.setattr(__main__, "__file__", "<stdin>", raising=False)
    assert Loop(tmp_path).run.sha256


def test_a_learning_rate_by_step_and_an_optimizer_of_something_else_are_the_loops_affair(tmp_path):
    other = nn.Linear(3, 1)

    def after(loop, step):
        for group in loop.optimizer.param_groups:
            group["lr"] = 0.1 / (1 + step.number)
        loop.optimizer.step()
        adam(other).step()

    assert Loop(tmp_path, after=after).run.sha256


def test_afterwards_a_model_is_plain_torchs(tmp_path):
    loop = Loop(tmp_path)
    loop.model(X).sum().backward()
    loop.optimizer.step()
    assert torch.is_grad_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
