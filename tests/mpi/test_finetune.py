"""A run that begins with others' weights, and freezes some, keeps the promise like any other."""

import json
import shutil
import sys

import pytest

from lockstep import tensors
from lockstep.pipeline.models import build
from tests.conftest import REPOSITORY, mpirun, thorough
from tests.crew import run_shared
from tests.mpi.matrix import PARTS

MODEL = "tests.mpi.models:little_resnet"  # with BatchNorm
FROZEN = ("conv1.", "bn1.", "layer1.")
FLAGS = [
    *("--shards", 6, "--batch", 192, "--epochs", 2, "--oversubscribe", "--backbone-lr", 0.1),
    *("--freeze", "conv1,bn1,layer1", "--checkpoint-every", "5 steps", "--model", MODEL),
]


# Everything that images may go through, but for the other way to mix.
AUGMENTED = [
    *("--crop", 0.5, "--augment", "trivial", "--jitter", 0.3, "--erase", 0.3, "--mixup", 0.4),
    *("--shift", 1, "--flip", "--freeze", "layer1", "--label-smoothing", 0.1),
]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    tensors.save(build(MODEL, (1, 28, 28), 7, seed=5).state_dict(), path)
    return path


def words(data, output, ranks, *flags):
    launcher = mpirun(ranks) if ranks > 1 else [sys.executable]
    paths = ["--data", data, "--partition", data / "6/shards.csv", "--output", output]
    return [*launcher, "-m", "lockstep", "train", *paths, *FLAGS, "--ranks", ranks, *flags]


def train(data, output, ranks, *flags):
    done = run_shared(words(data, output, ranks, *flags), REPOSITORY)
    assert done.returncode == 0, done.stderr
    record = json.loads((output / "train.json").read_text())
    return {part: record[key] for part, key in PARTS.items()}, done.stderr


@pytest.fixture(scope="module")
def alone(digits, weights, tmp_path_factory):
    output = tmp_path_factory.mktemp("alone") / "run"
    return output, *train(digits, output, 1, "--strategy", "single", "--weights", weights)


def test_the_bits_are_the_same_on_any_ranks_and_through_a_stop(digits, weights, alone, tmp_path):
    output, expected, said = alone
    assert "drawn anew" in said
    model, begun = tensors.read(output / "model.safetensors"), tensors.read(weights)
    same = {name for name in begun if name in model and begun[name].equal(model[name])}
    assert same == {name for name in begun if name.startswith(FROZEN)}
    assert train(digits, tmp_path / "3", 3, "--weights", weights)[0] == expected
    stopped = ["env", "LOCKSTEP_FAULT=step:7:0:usr1"]
    one = tmp_path / "2"
    done = run_shared([*stopped, *words(digits, one, 2, "--weights", weights)], REPOSITORY)
    assert done.returncode == 75, done.stderr
    assert train(digits, one, 3, "--weights", weights)[0] == expected


def test_augmented_images_are_the_same_on_any_ranks(digits, weights, tmp_path):
    flags = ["--weights", weights, *AUGMENTED]
    expected = train(digits, tmp_path / "1", 1, *flags, "--strategy", "single")[0]
    assert train(digits, tmp_path / "3", 3, *flags)[0] == expected
    flags[flags.index("--mixup")] = "--cutmix"
    one = train(digits, tmp_path / "c", 1, *flags, "--strategy", "single")[0]
    assert train(digits, tmp_path / "d", 2, *flags)[0] == one != expected


@pytest.mark.parametrize(
    "how",
    [
        ["--strategy", "fsdp"],
        thorough(["--strategy", "pipeline"]),
        thorough(["--strategy", "hybrid"]),
    ],
)
def test_a_model_in_parts_is_frozen_like_a_whole_one(how, digits, weights, alone, tmp_path):
    ranks = 6 if "hybrid" in how else 2
    assert train(digits, tmp_path, ranks, "--weights", weights, *how)[0] == alone[1]


def test_other_weights_under_the_same_name_are_another_run(digits, weights, alone, tmp_path):
    folder = tmp_path / "run"
    path = shutil.copy(weights, tmp_path / "w.safetensors")
    assert train(digits, folder, 1, "--weights", path, "--strategy", "single")[0] == alone[1]
    tensors.save(build(MODEL, (1, 28, 28), 7, seed=6).state_dict(), path)
    done = run_shared([sys.executable, "-m", "lockstep", "reproduce", folder], REPOSITORY)
    assert done.returncode == 1
    assert "not as it was: initial weights: " in done.stdout
    found, said = train(digits, folder, 1, "--weights", path, "--strategy", "single")
    assert "going on" not in said
    assert found != alone[1]


@pytest.mark.thorough
def test_classes_that_are_balanced_are_so_on_any_ranks(digits, tmp_path):
    table = tmp_path / "shards.csv"
    words = ["--data", digits, "--output", tmp_path, "--shards", 6, "--scheme", "balanced"]
    done = run_shared([sys.executable, "-m", "lockstep", "partition", *words], REPOSITORY)
    assert done.returncode == 0, done.stderr
    flags = ["--partition", table, "--scheme", "balanced", "--freeze", "conv1", "--flip"]
    one = train(digits, tmp_path / "1", 1, *flags, "--strategy", "single")[0]
    assert train(digits, tmp_path / "3", 3, *flags)[0] == one
