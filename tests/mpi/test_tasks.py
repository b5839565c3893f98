"""Numbers and tokens are learned with the bits of one process, and through a stop."""

import json
import sys

import numpy as np
import pytest

from lockstep.pipeline.cli import main
from tests.arrays import numbers, tokens
from tests.conftest import REPOSITORY, mpirun
from tests.crew import run_shared
from tests.mpi.matrix import PARTS

MODELS = {"regression": "mlp", "language": "gpt"}
HOW = {
    1: {"one": ["--strategy", "single"]},
    2: {
        "tree": [],
        "parts": ["--strategy", "fsdp"],
        "stages": ["--strategy", "pipeline"],
    },
    3: {"uneven": []},
}


@pytest.fixture(scope="module", params=MODELS)
def task(request, tmp_path_factory):
    """Return the task's folder with prepared data, and the flags of a run."""
    folder, name = tmp_path_factory.mktemp(request.param), request.param
    np.savez(folder / "own.npz", **(numbers() if name == "regression" else tokens()))
    words = ["prepare", "--name", "npz", "--task", name, "--path", folder / "own.npz"]
    main([str(word) for word in (*words, "--output", folder / "data")])
    main(["partition", "--data", str(folder / "data"), "--output", str(folder / "shards")])
    flags = ["--model", MODELS[name], "--partition", folder / "shards" / "shards.csv"]
    flags += ["--batch", 32, "--epochs", 2, "--snapshots", 1, "--clip", 1.0, "--oversubscribe"]
    return folder, [str(flag) for flag in flags]


@pytest.fixture(scope="module")
def reference(task):
    """Return the bits of one process."""
    return train_all(task, 1)["one"]


def train_all(task, ranks):
    """Train and evaluate all runs of a number of ranks in one launch; return their bits by name."""
    folder, flags = task
    runs = {name: [*flags, "--ranks", str(ranks), *how] for name, how in HOW[ranks].items()}
    commands = folder / f"{ranks}.json"
    commands.write_text(json.dumps(runs))
    program = ["-m", "tests.mpi.programs.train_points", commands, folder / "data", folder]
    launcher = mpirun(ranks) if ranks > 1 else [sys.executable]
    done = run_shared([*launcher, *program], REPOSITORY)
    assert done.returncode == 0, done.stderr
    return {
        name: bits(folder / name) | {"metrics": (folder / name / "metrics.json").read_text()}
        for name in runs
    }


def bits(results):
    """Return the SHA-256 of each part of what a training left."""
    record = json.loads((results / "train.json").read_text())
    return {part: record[key] for part, key in PARTS.items()}


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_bits_and_metrics_are_those_of_one_process(task, ranks, reference):
    for name, found in train_all(task, ranks).items():
        assert found == reference, name


def test_a_run_that_was_stopped_ends_with_the_bits_of_one_that_was_not(task, reference):
    folder, flags = task
    words = ["-m", "lockstep", "train", "--data", folder / "data", "--output", folder / "stopped"]
    words += [*flags, "--checkpoint-every", "2 steps"]
    fault = ["env", "LOCKSTEP_FAULT=step:1:0:usr1"]  # ranks ask one another after some steps more
    done = run_shared([*fault, *mpirun(2), *words, "--ranks", 2], REPOSITORY)
    assert done.returncode == 75, done.stderr
    assert not (folder / "stopped" / "train.json").exists()
    done = run_shared([*mpirun(3), *words, "--ranks", 3], REPOSITORY)
    assert done.returncode == 0, done.stderr
    assert "going on after step" in done.stderr
    found = bits(folder / "stopped")
    assert found == {part: reference[part] for part in found}
