"""Validation while training: what it finds, keeps and stops is the same on any ranks."""

import json
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import REPOSITORY, mpirun, prepare_digits, run, thorough
from tests.crew import run_shared
from tests.mpi.matrix import PARTS
from tests.mpi.test_promise import TIMES

COMMON = [
    *("--shards", 6, "--batch", 96, "--epochs", 30, "--schedule", "constant"),
    *("--checkpoint-every", "4 steps", "--oversubscribe", "--patience", 2, "--keep", "best"),
]
WHOLE = [
    *COMMON,
    *("--model", "tests.mpi.models:busy", "--lr", 0.05, "--ema", 0.5),
    *("--class-weights", "balanced"),
]
CUT = [*COMMON, "--model", "cnn", "--lr", 0.02, "--class-weights", "1,2,1,1,1,3,1,1,1,0.3"]
SINGLE = ["--strategy", "single"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("validated")
    return prepare_digits(folder, [6], "--validation-fraction", 0.2)


def words(data: Path, output: Path, ranks: int, flags: list) -> list:
    launcher = mpirun(ranks) if ranks > 1 else [sys.executable]
    named = ["--data", data, "--partition", data / "6/shards.csv", "--output", output]
    return [*launcher, "-m", "lockstep", "train", *named, *flags, "--ranks", ranks]


def bits(output: Path) -> dict:
    record = json.loads((output / "train.json").read_text())
    history = pd.read_csv(output / "history.csv").drop(columns=[*TIMES, "validation_seconds"])
    found = {part: record[key] for part, key in PARTS.items()}
    found |= {"model": record["model_sha256"], "history": history.to_csv(index=False)}
    return found | {"best": record["best"], "stopped": record["stopped_early"]}


def train(data: Path, output: Path, ranks: int, flags: list) -> dict:
    done = run_shared(words(data, output, ranks, flags), REPOSITORY)
    assert done.returncode == 0, done.stderr
    return bits(output)


def measure(data: Path, output: Path, ranks: int) -> dict:
    folders = ["--data", data, "--results", output]
    if not (output / "averaged.json").exists():
        average = [sys.executable, "-m", "lockstep", "average", *folders]
        assert run_shared(average, REPOSITORY).returncode == 0
    launcher = mpirun(ranks) if ranks > 1 else [sys.executable]
    evaluate = [*launcher, "-m", "lockstep", "evaluate", *folders, "--ranks", ranks]
    done = run_shared(evaluate, REPOSITORY)
    assert done.returncode == 0, done.stderr
    return json.loads((output / "metrics.json").read_text())


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    """The folder of a run that one process trained, and its bits."""
    output = tmp_path_factory.mktemp("alone") / "run"
    return output, train(data, output, 1, [*WHOLE, *SINGLE])


def test_a_run_stops_early_at_the_same_step_with_the_same_bits_on_any_ranks(data, alone, tmp_path):
    _, expected = alone
    assert expected["stopped"]
    for ranks in (2, 3):
        assert train(data, tmp_path / str(ranks), ranks, WHOLE) == expected


def test_a_run_that_is_killed_goes_on_to_the_same_best_epoch(data, alone, tmp_path):
    _, expected = alone
    output = tmp_path / "run"
    best = expected["best"]["epoch"]
    stopped = ["env", f"LOCKSTEP_FAULT=step:{(best - 1) * 11}:2:usr1"]
    assert run_shared([*stopped, *words(data, output, 3, WHOLE)], REPOSITORY).returncode == 75
    killed = ["env", f"LOCKSTEP_FAULT=step:{(best + 1) * 11 + 2}:1:kill"]
    assert run([*killed, *words(data, output, 2, WHOLE)], REPOSITORY).returncode
    assert not (output / "train.json").exists()
    assert train(data, output, 1, WHOLE) == expected
    record = json.loads((output / "train.json").read_text())
    assert [len(part["hosts"]) for part in record["segments"]] == [3, 2, 1]


def test_what_is_kept_is_measured_as_it_was_in_training(data, alone):
    output, expected = alone
    once, again = (measure(data, output, ranks) for ranks in (1, 3))
    assert once == again
    history = pd.read_csv(output / "history.csv")
    best = expected["best"]["epoch"]
    assert best == history["epoch"][history["validation_loss"].idxmin()]
    assert len(history) == best + 2
    assert once["validation"]["samples"] == 359
    for name in ("loss", "accuracy", "balanced_accuracy"):
        found = once["validation"]["last"][name]
        assert found == history[f"validation_{name}"][best - 1]


@pytest.mark.parametrize("strategy", ["pipeline", thorough("fsdp")])
def test_a_model_in_parts_is_validated_like_a_whole_one(strategy, data, tmp_path):
    expected = train(data, tmp_path / "alone", 1, [*CUT, *SINGLE])
    assert train(data, tmp_path / "parts", 2, [*CUT, "--strategy", strategy]) == expected


@pytest.mark.thorough
def test_of_replicas_the_mean_is_validated(data, tmp_path):
    flags = [*CUT, "--strategy", "local_sgd", "--sync-every", 4, "--epochs", 3, "--patience", 3]
    one, three = (train(data, tmp_path / str(ranks), ranks, flags) for ranks in (1, 3))
    assert one == three


@pytest.mark.thorough
@pytest.mark.parametrize("how", [["--strategy", "ddp"], ["--reduction", "fast"]])
def test_ranks_of_their_own_sums_agree_on_where_to_stop(how, data, tmp_path):
    found = train(data, tmp_path, 2, [*WHOLE, *how])
    metrics = measure(data, tmp_path, 1)
    assert metrics["validation"]["last"]["loss"] == found["best"]["validation_loss"]
