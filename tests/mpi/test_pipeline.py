"""pipeline and hybrid give the bits of one process, wherever the model is cut."""

import json
import sys

import pandas as pd
import pytest

from tests.conftest import REPOSITORY, mpirun, run

SGD = ("--optimizer", "sgd", "--lr", 0.05, "--clip", 1.0)
ADAMW = ("--optimizer", "adamw", "--weight-decay", 0.01, "--clip", 0.5, "--flip")
RUNS = {
    "cnn": ("--model", "cnn", "--shards", 4, "--batch", 64, *SGD),
    "busy": ("--model", "tests.mpi.models:busy", "--shards", 4, "--batch", 64, *ADAMW),
    "resnet": (
        *("--model", "tests.mpi.models:little_resnet", "--shards", 4, "--batch", 256),
        *("--label-smoothing", 0.1, *SGD),
    ),
    "blocks": ("--model", "tests.mpi.models:OfBlocks", "--shards", 4, "--batch", 128, *ADAMW),
    "bfloat16": ("--shards", 4, "--batch", 128, "--precision", "bfloat16"),
    "six shards": ("--model", "tests.mpi.models:busy", "--shards", 6, "--batch", 96, *SGD),
}
GPIPE = ("--strategy", "pipeline", "--pipeline-schedule", "gpipe")
ONE_F_ONE_B = ("--strategy", "pipeline", "--pipeline-schedule", "1f1b")


def train(data, output, name, ranks, *flags):
    """Train; return all of the result that must not depend on how it was computed."""
    shards = RUNS[name][RUNS[name].index("--shards") + 1]
    words = ["train", "--data", data, "--partition", data / str(shards) / "shards.csv"]
    words += ["--output", output, "--epochs", 2, "--snapshots", 1, "--oversubscribe"]
    launcher = mpirun(ranks) if ranks > 1 else [sys.executable]
    words += [*RUNS[name], "--ranks", ranks, *flags]
    done = run([*launcher, "-m", "lockstep", *words], REPOSITORY)
    assert done.returncode == 0, done.stderr
    record = json.loads((output / "train.json").read_text())
    history = pd.read_csv(output / "history.csv")[["epoch", "lr", "loss", "accuracy"]]
    return record["model_sha256"], record["optimizer_sha256"], history.to_csv()


@pytest.fixture(scope="module")
def single(digits, tmp_path_factory):
    """Return a function that trains a run by the strategy `single`, once."""
    known = {}

    def of(name):
        if name not in known:
            output = tmp_path_factory.mktemp("single")
            known[name] = train(digits, output, name, 1, "--strategy", "single")
        return known[name]

    return of


@pytest.mark.parametrize(
    ("name", "ranks", "how"),
    [
        ("busy", 1, GPIPE),
        *(("cnn", 2, GPIPE), ("cnn", 4, ONE_F_ONE_B)),
        *(("busy", 2, ONE_F_ONE_B), ("busy", 3, GPIPE), ("busy", 4, GPIPE)),
        *(("resnet", 2, GPIPE), ("resnet", 3, ONE_F_ONE_B)),
        *(("blocks", 3, GPIPE), ("blocks", 4, ONE_F_ONE_B)),
        ("bfloat16", 2, ONE_F_ONE_B),
        ("six shards", 4, ("--strategy", "hybrid", "--stages", 2)),
        ("six shards", 6, ("--strategy", "hybrid", "--stages", 2, *GPIPE[2:])),
    ],
)
def test_the_bits_are_those_of_one_process(name, ranks, how, digits, single, tmp_path):
    assert train(digits, tmp_path, name, ranks, *how) == single(name)


def test_a_saved_model_is_evaluated_as_any_other(digits, tmp_path):
    train(digits, tmp_path, "busy", 3, *GPIPE)
    for stage in ("average", "evaluate"):
        words = ["-m", "lockstep", stage, "--results", tmp_path, "--data", digits]
        words += ["--ranks", 1] if stage == "evaluate" else []
        done = run([sys.executable, *words], REPOSITORY)
        assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["last"]["accuracy"] > 0.2


def test_a_model_with_too_few_blocks_is_refused(digits, tmp_path):
    words = ["train", "--data", digits, "--partition", digits / "4" / "shards.csv"]
    words += ["--output", tmp_path / "out", "--model", "linear", "--ranks", 2, "--oversubscribe"]
    done = run([*mpirun(2), "-m", "lockstep", *words, *GPIPE], REPOSITORY)
    assert done.returncode == 2, done.stderr
    assert "1 blocks with parameters to train, too few for 2 stages" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "train.json").exists()
