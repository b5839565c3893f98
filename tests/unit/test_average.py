"""average: the mean of snapshots, and which of them have one."""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lockstep import tensors as state
from lockstep.files import sha256
from lockstep.pipeline.averaging import mean_state
from lockstep.pipeline.config import Dataset, Run
from lockstep.pipeline.data.manifest import read_manifest
from lockstep.pipeline.model_file import metadata
from lockstep.pipeline.record import read_training
from lockstep.pipeline.stages.average import average, write_mean
from lockstep.pipeline.stages.prepare import prepare
from lockstep.random import permutation
from tests.damage import change_record


@pytest.fixture
def save(tmp_path):
    """A function that writes state_dicts and returns their paths."""

    def write(*states):
        paths = [tmp_path / f"epoch-{i}.safetensors" for i in range(len(states))]
        for values, path in zip(states, paths, strict=True):
            state.save(values, path)
        return paths

    return write


def test_the_mean_is_that_in_float64_rounded_once(save):
    random = np.random.default_rng(0)
    values = random.standard_normal((7, 50)) * 10.0 ** random.uniform(-20, 20, (7, 50))
    values = values.astype(np.float32)
    (mean,) = mean_state(save(*({"w": torch.from_numpy(v)} for v in values))).values()
    total = np.zeros(50)
    for value in values:
        total += value
    assert mean.dtype == torch.float32
    assert np.array_equal(mean.numpy(), (total / 7).astype(np.float32))


def test_without_torch_the_mean_is_the_same_file(save, tmp_path):
    draw = torch.Generator().manual_seed(0)
    states = [
        {
            "w": torch.randn(50, 3, generator=draw) * 10.0**i,
            "zero": torch.tensor([-0.0, 0.0]),
            "double": torch.randn(4, generator=draw, dtype=torch.float64),
            "half": torch.randn(4, generator=draw).half(),
            "count": torch.tensor(i),
        }
        for i in range(3)
    ]
    paths, about = save(*states), {"lockstep": "{}"}
    write_mean(paths, tmp_path / "numpy", about)
    state.save(mean_state(paths), tmp_path / "torch", about)
    assert (tmp_path / "numpy").read_bytes() == (tmp_path / "torch").read_bytes()


@given(st.integers(1, 5))
def test_the_mean_of_one_weight_is_that_weight(count):
    value = torch.randn(20)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        state.save({"w": value, "n": torch.tensor(count)}, path)
        found = mean_state([path] * count)
    assert torch.equal(found["w"], value)
    assert found["n"] == count


def test_each_type_stays_and_counts_are_the_last_ones(save):
    states = [
        {
            "half": torch.tensor([1.0, 3.0 * i], dtype=torch.bfloat16),
            "double": torch.tensor([1e-300 * i], dtype=torch.float64),
            "count": torch.tensor(10 * i),
            "flag": torch.tensor([i == 2]),
        }
        for i in range(3)
    ]
    found = mean_state(save(*states))
    assert {name: value.dtype for name, value in found.items()} == {
        name: value.dtype for name, value in states[0].items()
    }
    assert found["half"].tolist() == [1.0, 3.0]
    assert found["double"].tolist() == [1e-300]
    assert found["count"] == 20
    assert found["flag"].tolist() == [True]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"a": torch.zeros(2)}, ["key 'b' is not in both"]),
        ({"a": torch.zeros(2), "b": torch.zeros(1), "c": torch.zeros(1)}, ["key 'c' is not in"]),
        ({"a": torch.zeros(3), "b": torch.zeros(1)}, ["key 'a'", "(3,)", "(2,)"]),
        ({"a": torch.zeros(2).double(), "b": torch.zeros(1)}, ["key 'a'", "float64", "float32"]),
        ({"a": torch.zeros(2), "b": torch.zeros(1).int()}, ["key 'b'", "int32", "float32"]),
    ],
)
def test_snapshots_that_differ_are_named_by_file_and_key(save, refused, other, words):
    first = {"a": torch.zeros(2), "b": torch.zeros(1)}
    paths = save(first, first, other)
    with refused(paths[2], paths[0], *words):
        mean_state(paths)
    with refused(paths[2], paths[0], *words):
        write_mean(paths, paths[0].with_name("mean"), {})


def test_a_damaged_snapshot_is_named(save, refused):
    paths = save({"a": torch.zeros(2)}, {"a": torch.zeros(2)})
    paths[1].write_bytes(paths[1].read_bytes()[:-1])
    with refused(paths[1], "train again"):
        mean_state(paths)


OWN = """
from torch import nn

def make(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, classes))
"""


@pytest.fixture
def trained(tmp_path, monkeypatch, write_records):
    """The folders of a run without snapshots, and of 304 training images of 2 x 2 pixels that are
    sorted by class, the one dark and the other light."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "ownnorm.py").write_text(OWN)
    images = np.random.default_rng(0).integers(0, 100, (404, 2, 2), dtype=np.uint8)
    labels = np.repeat([0, 1], 202)
    images[labels == 1] += 155
    np.savez(tmp_path / "own.npz", images=images, labels=labels)
    dataset = Dataset(name="npz", path=str(tmp_path / "own.npz"), test_fraction=0.25)
    prepare(dataset, tmp_path / "data")
    run = Run(model="ownnorm:make", ranks=1, shards=2, batch=20, epochs=2, snapshots=2)
    write_records(tmp_path / "run", run)
    found = read_manifest(tmp_path / "data")
    same = {"mean": found.mean, "std": found.std, "classes": found.class_names}
    change_record(tmp_path / "run", data_sha256=found.sha256, buffers_sha256="0" * 64, **same)
    threads = torch.get_num_threads()
    yield tmp_path / "run", tmp_path / "data"
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)
    torch.use_deterministic_algorithms(False)
    sys.modules.pop("ownnorm", None)


def made():
    """Return the model of the fixture's run."""
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 2))


def take(results, *states):
    """Have a run's snapshots be these."""
    sums = {}
    for epoch, values in enumerate(states, start=1):
        path = results / "snapshots" / f"epoch-000{epoch}.safetensors"
        state.save(values, path)
        sums[path.name] = sha256(path)
    change_record(results, snapshots=sums)


def configure(results, **changes):
    """Have a run be set otherwise."""
    run = read_training(results).configuration
    change_record(results, configuration=run.model_copy(update=changes).model_dump())


def normalised(data):
    """Return the training images of a folder as a model gets them, N x 4."""
    images = np.load(data / "train" / "images.npy") / 255
    return ((images - images.mean()) / images.std()).reshape(-1, 4)


def test_the_averaged_model_has_the_mean_weights_and_statistics_of_its_own(trained):
    results, data = trained
    layers = made()
    first, second = (
        {**layers.state_dict(), "1.running_mean": torch.full((4,), 100.0 * epoch)}
        | {"2.weight": torch.full((2, 4), float(epoch))}
        for epoch in (1, 2)
    )
    take(results, first, second)
    record = average(results, data, threads=1)
    found = state.read(results / "averaged.safetensors")
    assert record == json.loads((results / "averaged.json").read_text())
    assert record["snapshots"] == ["epoch-0001.safetensors", "epoch-0002.safetensors"]
    assert record["model_sha256"] == sha256(results / "averaged.safetensors")
    assert torch.equal(found["2.weight"], torch.full((2, 4), 1.5))
    # 15 whole batches: four images are left.
    pixels = normalised(data)
    batches = pixels[permutation(len(pixels), "average", 0)][:300].reshape(15, 20, 4)
    assert found["1.running_mean"].numpy() == pytest.approx(batches.mean(axis=(0, 1)), abs=1e-6)
    variances = batches.var(axis=1, ddof=1).mean(axis=0)
    assert found["1.running_var"].numpy() == pytest.approx(variances, rel=1e-5)
    assert found["1.running_var"].numpy() == pytest.approx(pixels.var(axis=0), rel=0.05)


def test_statistics_are_of_all_samples_where_a_batch_has_more(trained):
    results, data = trained
    configure(results, batch=400, scheme="balanced")  # which repeats samples
    layers = made()
    take(results, layers.state_dict(), layers.state_dict())
    average(results, data, threads=1)
    pixels = normalised(data)
    found = state.read(results / "averaged.safetensors")
    assert found["1.running_var"].numpy() == pytest.approx(pixels.var(axis=0, ddof=1), rel=1e-5)


def test_statistics_are_of_what_the_precision_of_the_run_computes(trained):
    results, data = trained
    Path("ownnorm.py").write_text(OWN.replace("nn.Flatten(),", "nn.Flatten(), nn.Linear(4, 4),"))
    configure(results, precision="bfloat16")
    layers = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    take(results, layers.state_dict(), layers.state_dict())
    average(results, data, threads=1)
    pixels = normalised(data)
    pixels = torch.from_numpy(pixels[permutation(len(pixels), "average", 0)][:300]).float()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        halved = layers[1](pixels).view(15, 20, 4)
    assert halved.dtype == torch.bfloat16
    means = state.read(results / "averaged.safetensors")["2.running_mean"]
    assert torch.allclose(means, halved.float().mean((0, 1)), atol=1e-6)
    assert not torch.allclose(means, layers[1](pixels).mean(0), atol=1e-6)


def test_a_single_snapshot_is_its_own_average(trained):
    results, data = trained
    layers = made()
    layers[1].running_mean.fill_(7.0)
    take(results, layers.state_dict())
    about = metadata(read_training(results))
    state.save(layers.state_dict(), results / "model.safetensors", about)
    average(results, data, threads=1)
    found = state.read(results / "averaged.safetensors")
    assert all(torch.equal(found[name], value) for name, value in layers.state_dict().items())


def test_statistics_of_frozen_layers_are_not_computed_again(trained):
    results, data = trained
    configure(results, freeze="1")
    layers = made()
    layers[1].running_mean.fill_(7.0)
    take(results, layers.state_dict(), layers.state_dict())
    average(results, data, threads=1)
    found = state.read(results / "averaged.safetensors")
    assert all(torch.equal(found[name], value) for name, value in layers.state_dict().items())


def test_what_numpy_has_no_type_for_is_averaged_by_torch(trained):
    results, data = trained
    layers = made()
    half = {n: v.bfloat16() if v.is_floating_point() else v for n, v in layers.state_dict().items()}
    weights = (torch.full((2, 4), epoch, dtype=torch.bfloat16) for epoch in (1.0, 2.0))
    take(results, *(half | {"2.weight": weight} for weight in weights))
    change_record(results, buffers_sha256=None)
    average(results, data, threads=1)
    found = state.read(results / "averaged.safetensors")
    assert torch.equal(found["2.weight"], torch.full((2, 4), 1.5))


def test_a_run_without_snapshots_is_refused(trained, refused):
    with refused(trained[0] / "train.json", "no snapshot", "train again"):
        average(*trained, threads=1)
