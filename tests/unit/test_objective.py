"""classification: images as models want them, losses, and the test of bfloat16."""

import math
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight
from torch import nn
from torch.nn import functional

from lockstep import tensors as state
from lockstep.pipeline.config import Run
from lockstep.pipeline.models import build
from lockstep.pipeline.tasks.classification import Classification, weights_of
from lockstep.pipeline.tasks.rehearsal import check_bfloat16
from lockstep.pipeline.tasks.supervised import Normalize
from lockstep.strategies.task import Loss, MicroBatch

CPU = torch.device("cpu")


@given(
    st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5), st.integers(1, 4)),
    st.integers(0, 2**32 - 1),
)
def test_images_are_normalized_by_channel(shape, seed):
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, shape, dtype=np.uint8)
    mean, deviation = random.uniform(0, 1, shape[-1]), random.uniform(0.01, 1, shape[-1])
    found = Normalize(mean.tolist(), deviation.tolist(), CPU)(images)
    expected = ((images / 255 - mean) / deviation).transpose(0, 3, 1, 2)
    assert found.dtype == torch.float32
    assert found.shape == expected.shape
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert np.allclose(found.numpy(), expected, rtol=1e-5, atol=1e-4)


def test_a_channel_without_content_stays_finite():
    images = np.full((1, 2, 2, 2), 255, np.uint8)
    images[..., 1] = [[0, 1], [2, 3]]
    found = Normalize([1.0, 0.0], [0.0, 1 / 255], CPU)(images)
    assert found[0, 0].tolist() == [[0, 0], [0, 0]]
    assert found[0, 1] == pytest.approx(torch.tensor([[0.0, 1], [2, 3]]))


def test_images_stay_as_they_were():
    images = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
    before = images.copy()
    Normalize([0.5] * 3, [0.5] * 3, CPU)(images)
    assert np.array_equal(images, before)


def micro_batch(seed=0, count=16, step=3, shard=1, size=28):
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (count, size, size, 1), dtype=np.uint8)
    return MicroBatch(np.arange(count), images, random.integers(0, 10, count), step, shard)


def task(**values):
    return Classification(Run(**values), Normalize([0.5], [0.3], CPU), (1, 28, 28), CPU)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_sum_of_the_cross_entropies_and_the_sums_add_up(smoothing):
    model = build("cnn", (1, 28, 28), 10)
    batches = [micro_batch(seed) for seed in range(3)]
    images = np.concatenate([b.inputs for b in batches]).transpose(0, 3, 1, 2)
    labels = torch.from_numpy(np.concatenate([b.targets for b in batches]))
    scores = model((torch.from_numpy(images) / 255 - 0.5) / 0.3)
    mean = functional.cross_entropy(scores, labels, label_smoothing=smoothing).item()
    trained = task(label_smoothing=smoothing)
    loss = trained(model, batches)
    assert loss.value.requires_grad
    assert loss.value.item() == pytest.approx(48 * mean, rel=1e-5)
    correct = (scores.argmax(1) == labels).sum().item()
    sums = {"items": 48, "loss": loss.value.item(), "correct": correct, "samples": 48}
    assert loss.sums() == sums
    means = trained.means(loss.sums())
    assert means == {"loss": pytest.approx(mean, rel=1e-5), "accuracy": correct / 48}


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weighted_losses_over_their_weights_are_the_mean_that_torch_has_of_the_batch(smoothing):
    model, text = build("cnn", (1, 28, 28), 10), "1,2,0.5,3,1,1,7.25,1,0.001,1"
    weights = weights_of(text, [], 10)
    run = Run(label_smoothing=smoothing, class_weights=text)
    trained = Classification(run, Normalize([0.5], [0.3], CPU), (1, 28, 28), CPU, None, weights)
    batches = [micro_batch(seed) for seed in range(3)]
    losses = [trained(model, [batch]) for batch in batches]
    images = np.concatenate([b.inputs for b in batches]).transpose(0, 3, 1, 2)
    scores = model((torch.from_numpy(images) / 255 - 0.5) / 0.3)
    exact = torch.tensor([float(word) for word in text.split(",")])
    mean = nn.CrossEntropyLoss(exact, label_smoothing=smoothing)
    expected = mean(scores, torch.from_numpy(np.concatenate([b.targets for b in batches])))
    found = sum(loss.value.item() for loss in losses) / sum(loss.items for loss in losses)
    assert found == pytest.approx(expected.item(), rel=1e-5)
    sums = {name: sum(loss.sums()[name] for loss in losses) for name in losses[0].sums()}
    assert trained.means(sums)["loss"] == pytest.approx(found)
    assert sums["samples"] == 48
    assert trained.means(sums)["accuracy"] == sums["correct"] / 48


def test_balanced_weights_are_those_of_scikit_learn():
    labels = np.repeat([0, 1, 2], [90, 9, 1])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    found = weights_of("balanced", [90, 9, 1], 3)
    assert found == pytest.approx(expected, rel=1e-6)
    assert weights_of("none", [90, 9, 1], 3) is None


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=20), st.integers(0, 2**32))
def test_weights_have_one_sum_in_any_order(weights, seed):
    random = Random(seed)
    found = weights_of(",".join(map(repr, weights)), [], len(weights)).astype(np.float64)
    drawn = random.choices(list(found), k=3000)
    total = sum(drawn)
    random.shuffle(drawn)
    assert sum(drawn) == total
    assert sum(drawn[:1000]) + sum(drawn[1000:]) == total == math.fsum(drawn)
    assert (found > 0).all()


def test_weights_for_other_classes_are_refused(refused):
    with refused("class_weights: 2 numbers", "3 classes"):
        weights_of("1,2", [5, 5, 5], 3)


def test_dropout_depends_on_the_seed_the_step_and_the_shard_alone():
    model = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(784, 10))

    def loss(seed=0, **place):
        torch.rand(3)
        return task(seed=seed)(model, [micro_batch(**place)]).value.item()

    assert loss() == loss()
    assert len({loss(), loss(step=4), loss(shard=2), loss(seed=1)}) == 4


def test_bfloat16_computes_in_bfloat16_and_answers_in_float32():
    model = build("cnn", (1, 28, 28), 10)
    seen = []
    model[0].register_forward_hook(lambda layer, inputs, output: seen.append(output.dtype))
    loss = task(precision="bfloat16")(model, [micro_batch()])
    loss.value.backward()
    assert seen == [torch.bfloat16]
    assert loss.value.dtype == torch.float32
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}


def test_bfloat16_passes_on_the_cnn():
    model = build("cnn", (1, 28, 28), 10)
    before = state.digest(model.state_dict())
    distance = check_bfloat16(model, task(precision="bfloat16"), task(), micro_batch(count=32))
    assert 0 < distance < 0.2
    assert state.digest(model.state_dict()) == before
    assert all(p.grad is None for p in model.parameters())


def test_the_check_of_bfloat16_leaves_batchnorm_as_it_was():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 10))
    before = state.digest(model.state_dict())
    check_bfloat16(model, task(precision="bfloat16"), task(), micro_batch(count=32, size=8))
    assert state.digest(model.state_dict()) == before


@pytest.mark.parametrize("factor", [-1.0, 0.0, 3.0, float("nan"), float("inf")])
def test_a_wrong_gradient_is_refused(refused, factor):
    def wrong(model, batches):
        loss = task()(model, batches)
        return Loss(loss.value * factor, loss.items)

    model = build("cnn", (1, 28, 28), 10)
    with refused("precision", "bfloat16", "float32"):
        check_bfloat16(model, wrong, task(), micro_batch())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_mixed_images_is_that_of_both_labels_by_their_shares(smoothing):
    run = Run(label_smoothing=smoothing, mixup=0.4)
    task = Classification(run, lambda array: array, (1, 28, 28), torch.device("cpu"))
    outputs = torch.randn(6, 4)
    targets = torch.tensor([[i % 4, (i + 1) % 4, 0.3] for i in range(6)], dtype=torch.float64)
    soft = 0.3 * torch.eye(4)[targets[:, 0].long()] + 0.7 * torch.eye(4)[targets[:, 1].long()]
    known = functional.cross_entropy(outputs, soft, reduction="sum", label_smoothing=smoothing)
    found = task.loss(outputs, targets)
    torch.testing.assert_close(found.value, known)
    assert found.items == 6
    right = int((outputs.argmax(1) == targets[:, 1]).sum())
    assert int(found.metrics["correct"]) == right
    torch.testing.assert_close(
        task.each(outputs, targets).sum(),
        functional.cross_entropy(outputs, soft, reduction="sum"),
    )
