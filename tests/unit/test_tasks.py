"""regression and language: their arrays, losses, metrics and models, against numpy by hand."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from lockstep.errors import UserError
from lockstep.pipeline import kinds
from lockstep.pipeline.config import Config, Dataset, Run
from lockstep.pipeline.data.arrays import open_part
from lockstep.pipeline.data.manifest import read_manifest
from lockstep.pipeline.data.shards import read_members
from lockstep.pipeline.models import build
from lockstep.pipeline.stages.partition import partition
from lockstep.pipeline.stages.predict import _array, _following, _outputs
from lockstep.pipeline.stages.prepare import prepare
from lockstep.pipeline.tasks import language, regression
from lockstep.pipeline.tasks.make import LEARNED, make
from lockstep.strategies.task import MicroBatch
from tests.arrays import numbers, tokens

CPU = torch.device("cpu")


@pytest.fixture
def npz(tmp_path):
    """A function that prepares arrays for a task, and returns the folder."""

    def of(task, fraction=0.2, **arrays):
        path = tmp_path / "own.npz"
        np.savez(path, **arrays)
        prepare(Dataset(name="npz", task=task, path=str(path), test_fraction=fraction), tmp_path)
        return tmp_path

    return of


def micro_batch(inputs, targets):
    return MicroBatch(np.arange(len(inputs)), np.array(inputs), np.array(targets), 0, 0)


def test_each_task_that_is_declared_can_be_made_and_no_two_tables_look_alike():
    assert LEARNED.keys() == kinds.TASKS.keys()
    for kind in kinds.TASKS.values():
        assert kinds.of_columns(["run", *kind.figured, kind.rate]) is kind
    with pytest.raises(ValueError, match="no task has a table of loss, run"):
        kinds.of_columns(["run", "loss"])


def test_numbers_come_back_with_the_moments_of_each_column(npz):
    arrays = numbers()
    folder = npz("regression", **arrays)
    train, test = (open_part(folder / p, kinds.REGRESSION) for p in ("train", "test"))
    assert (len(train), len(test)) == (240, 60)
    assert train.inputs.dtype == train.targets.dtype == np.float32
    whole = np.concatenate([train.inputs, test.inputs])
    by_first = np.argsort(arrays["inputs"].astype(np.float32)[:, 0])
    assert np.array_equal(
        whole[np.argsort(whole[:, 0])], arrays["inputs"].astype(np.float32)[by_first]
    )
    manifest = read_manifest(folder)
    assert (manifest.task, manifest.shape, manifest.outputs) == ("regression", (3,), 2)
    assert manifest.mean == pytest.approx(train.inputs.mean(0, np.float64), rel=1e-9)
    assert manifest.std == pytest.approx(train.inputs.astype(np.float64).std(0), rel=1e-9)
    found = make(Run(model="mlp"), manifest, CPU).normalize(np.array(train.inputs)).numpy()
    assert found.mean(0) == pytest.approx(0, abs=1e-4)
    assert found.std(0) == pytest.approx(1, abs=1e-4)


def test_uint8_inputs_are_brought_to_mean_0_as_well_channels_first(npz):
    draw = np.random.default_rng(0)
    inputs = draw.integers(0, 256, (40, 5, 4, 2), np.uint8)
    folder = npz("regression", inputs=inputs, targets=np.arange(40))
    part, manifest = open_part(folder / "train", kinds.REGRESSION), read_manifest(folder)
    assert (manifest.shape, manifest.outputs, part.inputs.dtype) == ((2, 5, 4), 1, np.uint8)
    assert part.targets.shape == (32, 1)
    found = make(Run(), manifest, CPU).normalize(np.array(part.inputs)).numpy()
    mean, std = part.inputs.mean((0, 1, 2)), part.inputs.std((0, 1, 2))
    assert np.allclose(found, ((part.inputs - mean) / std).transpose(0, 3, 1, 2), atol=1e-5)


def test_tokens_come_back_each_beside_the_one_that_is_next(npz):
    rows = tokens()["tokens"]
    folder = npz("language", tokens=rows, test_tokens=rows[:7])
    part, manifest = open_part(folder / "train", kinds.LANGUAGE), read_manifest(folder)
    assert np.array_equal(part.inputs, rows[:, :-1])
    assert np.array_equal(part.targets, rows[:, 1:])
    assert len(open_part(folder / "test", kinds.LANGUAGE)) == 7
    assert (manifest.shape, manifest.outputs) == ((8,), 7)


def test_samples_without_labels_are_shared_evenly(npz):
    folder = npz("regression", **numbers())
    for scheme in ("stratified", "iid", "contiguous"):
        partition(folder, scheme, 7, 0, 0.5, folder / scheme)
        members = read_members(folder / scheme / "shards.csv", 240, 7)
        assert {len(ids) for ids in members} == {34, 35}
        assert list(pd.read_csv(folder / scheme / "summary.csv")) == ["shard", "samples"]
    with pytest.raises(UserError, match="'dirichlet' is about classes, and regression has none"):
        partition(folder, "dirichlet", 7, 0, 0.5, folder / "no")


GOOD = np.ones((10, 3))
ROWS = np.tile(np.arange(5), (10, 1))


def replaced(array, place, value):
    changed = array.copy()
    changed[place] = value
    return changed


@pytest.mark.parametrize(
    ("task", "arrays", "words"),
    [
        ("regression", {"inputs": GOOD}, ["has no array 'targets'; it has inputs"]),
        ("regression", {"inputs": GOOD[:, 0], "targets": GOOD}, ["inputs is", "N x ... x C"]),
        ("regression", {"inputs": GOOD.astype(int), "targets": GOOD}, ["int64", "expected floats"]),
        ("regression", {"inputs": GOOD, "targets": GOOD[1:]}, ["targets is", "expected numbers"]),
        (
            "regression",
            {"inputs": replaced(GOOD, (3, 1), np.nan), "targets": GOOD},
            ["inputs: sample", "has nan, expected numbers that float32 holds"],
        ),
        (
            "regression",
            {"inputs": GOOD, "targets": replaced(GOOD, (3, 1), 1e60)},
            ["targets: sample 3 has inf, expected numbers that float32 holds"],
        ),
        (
            "regression",
            {"inputs": GOOD, "targets": GOOD, "test_inputs": GOOD[:, :2], "test_targets": GOOD},
            ["expected both alike"],
        ),
        ("regression", {"inputs": GOOD[:1], "targets": GOOD[:1]}, ["too few samples, 1,"]),
        ("language", {"tokens": ROWS * 0.5}, ["tokens is float64", "expected integers"]),
        ("language", {"tokens": ROWS[:, :1]}, ["with two or more in a row"]),
        ("language", {"tokens": replaced(ROWS, (4, 2), -2)}, ["begins with", "0, 1, -2, 3, 4"]),
        ("language", {"tokens": replaced(ROWS, (4, 2), -1)}, ["-1 in the places after the last"]),
        ("language", {"tokens": replaced(ROWS, (4, 2), 2**31)}, ["expected less than 2**31"]),
        ("language", {"tokens": ROWS, "test_tokens": ROWS[:, 1:]}, ["bring them to one length"]),
    ],
)
def test_arrays_that_a_task_does_not_take_are_refused(npz, task, arrays, words):
    with pytest.raises(UserError) as caught:
        npz(task, **arrays)
    assert "\n" not in str(caught.value)
    for word in ("own.npz", *words):
        assert word in str(caught.value)


SECONDS = 1_700_000_000 + np.arange(10)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (
            {"inputs": GOOD, "targets": SECONDS},
            ["targets: sample 1 has 1700000001, which float32 rounds to 1700000000"],
        ),
        (
            {"inputs": GOOD, "targets": SECONDS + 0.0},
            ["targets: channel 0 goes from 1700000000.0 to 1700000009.0", "subtract its mean"],
        ),
        (
            {"inputs": np.stack([np.arange(10), SECONDS], 1) + 0.0, "targets": GOOD},
            ["inputs: channel 1 goes from 17000000", "subtract its mean"],
        ),
    ],
)
def test_numbers_that_float32_does_not_tell_apart_are_refused(npz, refused, arrays, words):
    with refused("own.npz: ", *words):
        npz("regression", **arrays)


def test_numbers_that_float32_tells_apart_or_that_are_one_are_taken(npz):
    same = np.full(10, 0.1) + np.arange(10) % 2 * 2**-56  # but for what float64 rounds
    inputs = np.stack([same, SECONDS - SECONDS.mean(), np.full(10, 1.7e9)], 1)
    assert len(np.unique(same)) == 2
    npz(
        "regression", inputs=inputs, targets=np.stack([SECONDS[0] // 128 * 128 + 0 * same, same], 1)
    )
    npz("regression", inputs=SECONDS.astype(np.float32)[:, None], targets=SECONDS - SECONDS[0])
    few = {"test_inputs": GOOD[:2], "test_targets": 1 + 1e-9 * np.arange(2)}
    npz("regression", inputs=GOOD, targets=np.arange(10.0), **few)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([[1.0, 2.0, 3.0, -1.0]], ["tokens is float64, expected integers"]),
        ([[1, 2, 3, 4], [1, 2, -100, -100]], ["sequence 1 begins with [1, 2, -100, -100]"]),
        ([[1, -1, 3, 4]], ["sequence 0", "-1 in the places after the last"]),
        ([[-1, -1, -1, -1]], ["sequence 0", "expected 1 or more tokens"]),
        ([[0, 1, 2, 9], [1, 2**32 + 3, 1, 1]], ["sequence 1 has 4294967299, expected 0 to 9"]),
        ([[0, 1, 10, -1]], ["sequence 0 has 10, expected 0 to 9"]),
    ],
)
def test_tokens_that_a_model_has_not_learned_are_not_predicted(tmp_path, refused, rows, words):
    training = SimpleNamespace(task="language", shape=[4], outputs=10)
    np.savez(tmp_path / "new.npz", tokens=np.array(rows))
    with refused("new.npz: tokens", *words):
        _array(tmp_path / "new.npz", training)
    np.savez(tmp_path / "new.npz", tokens=np.array([[9, -1, -1, -1], [0, 1, 2, 3]]))
    assert _array(tmp_path / "new.npz", training).tolist() == [[9, -1, -1, -1], [0, 1, 2, 3]]


class OneMore(torch.nn.Module):
    """A model that foretells of each token the one after it, of 10."""

    def forward(self, tokens):
        return 20.0 * torch.nn.functional.one_hot((tokens.long().clamp(min=0) + 1) % 10, 10)


def test_what_follows_is_foretold_of_the_last_token_there_is(npz):
    task = make(Run(model="gpt"), read_manifest(npz("language", tokens=ROWS)), CPU)
    length = task.shape[0]
    whole = np.arange(length + 1, dtype=np.int32)[None] % 9
    short = np.where(np.arange(length + 1) < 3, whole, -1)
    for rows, last in ((whole, length), (whole[:, :-1], length - 1), (short, 2)):
        rows, model = rows.astype(np.int32), OneMore()
        found = _following(model, task, rows, _outputs(model, task, rows))
        assert found["next"].tolist() == [whole[0, last] + 1]


def test_the_loss_of_numbers_is_the_mean_squared_error_over_samples_and_targets(npz):
    folder = npz("regression", **numbers())
    part, manifest = open_part(folder / "train", kinds.REGRESSION), read_manifest(folder)
    task, model = make(Run(model="linear"), manifest, CPU), build("linear", (3,), 2)
    batches = [micro_batch(part.inputs[i : i + 5], part.targets[i : i + 5]) for i in (0, 5)]
    found = task(model, batches)
    weight, bias = (p.detach().double().numpy() for p in model.parameters())
    inputs = (part.inputs[:10] - np.array(manifest.mean)) / np.array(manifest.std)
    errors = inputs @ weight.T + bias - part.targets[:10]
    assert found.items == 20
    assert found.value.item() == pytest.approx((errors**2).sum(), rel=1e-5)
    assert found.metrics["absolute"].item() == pytest.approx(np.abs(errors).sum(), rel=1e-5)
    means = task.means({"loss": 8.0, "items": 2, "absolute": 3.0})
    assert means == {"loss": 4.0, "rmse": 2.0, "mae": 1.5}


def test_metrics_of_numbers_are_those_of_numpy():
    draw = np.random.default_rng(0)
    targets = draw.normal(size=(50, 2)).astype(np.float32)
    predicted = targets + draw.normal(size=(50, 2)).astype(np.float32) / 10
    found = regression.measure(targets, predicted)
    errors = predicted.astype(float) - targets
    assert found["rmse"] == pytest.approx(np.sqrt((errors**2).mean()))
    assert found["mae"] == pytest.approx(np.abs(errors).mean())
    r2 = 1 - (errors**2).mean(0) / targets.astype(float).var(0)
    assert found["r2"] == pytest.approx(r2.mean())


def test_a_target_that_never_changes_is_right_or_wrong():
    ones = np.ones((4, 1), np.float32)
    assert regression.measure(ones, ones)["r2"] == 1
    assert regression.measure(ones, ones + 1)["r2"] == 0


def test_the_loss_of_tokens_is_the_cross_entropy_of_those_that_are_there(npz):
    folder = npz("language", **tokens())
    part, manifest = open_part(folder / "train", kinds.LANGUAGE), read_manifest(folder)
    task = make(Run(model="gpt"), manifest, CPU)
    model = build("gpt", (8,), 7, kind=kinds.LANGUAGE)
    found = task(model, [micro_batch(part.inputs[:6], part.targets[:6])])
    targets = part.targets[:6]
    with torch.no_grad():
        scores = model(torch.from_numpy(np.maximum(part.inputs[:6], 0)).long()).double().numpy()
    surprise = np.log(np.exp(scores).sum(2)) - np.take_along_axis(
        scores, np.maximum(targets, 0)[..., None].astype(int), 2
    ).squeeze(2)
    there = targets >= 0
    assert 0 < there.sum() < there.size
    assert found.items == there.sum()
    assert found.value.item() == pytest.approx(surprise[there].sum(), rel=1e-5)
    right = (scores.argmax(2) == targets).sum()
    assert found.metrics["correct"].item() == right
    means = task.means({"loss": float(surprise[there].sum()), "items": 8, "correct": 2.0})
    assert means["perplexity"] == pytest.approx(np.exp(surprise[there].sum() / 8))
    assert means["accuracy"] == 0.25

    outputs = torch.from_numpy(scores).float()
    each = task.predict(outputs, task.to_targets(np.array(targets)))
    metrics = language.measure(**each)
    assert each["loss"] == pytest.approx((surprise * there).sum(1), rel=1e-5)
    assert metrics["loss"] == pytest.approx(surprise[there].mean(), rel=1e-5)
    assert metrics["perplexity"] == pytest.approx(np.exp(metrics["loss"]))
    assert (metrics["tokens"], metrics["correct"]) == (there.sum(), right)


def test_the_interval_of_a_perplexity_is_that_of_a_ratio_of_means():
    draw = np.random.default_rng(0)
    tokens = draw.integers(1, 9, 300)
    loss = tokens * 1.5 + draw.normal(0, 1, 300) * np.sqrt(tokens)
    found = language.measure(loss, tokens, tokens)
    # The delta method, from the covariance of losses and tokens.
    ratio, of = loss.mean() / tokens.mean(), np.cov(loss, tokens)
    variance = (of[0, 0] - 2 * ratio * of[0, 1] + ratio**2 * of[1, 1]) / 300 / tokens.mean() ** 2
    ends = np.exp(ratio + 1.96 * np.sqrt(variance) * np.array([-1, 1]))
    assert found["perplexity_interval"] == pytest.approx(list(ends))
    assert language.measure(loss[:1], tokens[:1], tokens[:1])["perplexity_interval"] is None


def test_what_a_gpt_foretells_does_not_look_ahead():
    model = build("gpt", (6,), 5, kind=kinds.LANGUAGE).eval()
    some = torch.tensor([[0, 1, 2, 3, 4, 0], [0, 1, 2, 4, 4, 4]])
    with torch.no_grad():
        one, other = model(some)
    assert torch.equal(one[:3], other[:3])
    assert not torch.allclose(one[3], other[3])


@pytest.mark.parametrize(
    ("task", "values", "words"),
    [
        ("regression", {"flip": True}, "flip: True is for images with classes"),
        ("language", {"model": "gpt", "label_smoothing": 0.1}, "label_smoothing: 0.1"),
        ("language", {"model": "mlp"}, "model: 'mlp' does not take the sequences of language"),
        ("regression", {"scheme": "dirichlet"}, "scheme: 'dirichlet' is about classes"),
    ],
)
def test_a_run_that_a_task_cannot_follow_is_refused(task, values, words):
    with pytest.raises(UserError, match=words):
        kinds.TASKS[task].check(Run(**values))


@pytest.mark.parametrize(
    ("name", "shape", "kind", "words"),
    [
        ("cnn", (3,), kinds.REGRESSION, "cnn takes images, not inputs of"),
        ("resnet18", (8,), kinds.LANGUAGE, "take gpt"),
        ("gpt", (3, 9, 9), kinds.CLASSIFICATION, "no 'gpt'; take cnn"),
    ],
)
def test_a_model_of_another_task_is_refused(name, shape, kind, words):
    with pytest.raises(UserError, match=words):
        build(name, shape, 4, kind=kind)


def test_images_can_be_learned_by_name_alone():
    values = {"name": "digits", "task": "regression"}
    with pytest.raises(ValueError, match="'digits' is of classification; regression takes an npz"):
        Config(dataset=Dataset(**values))
