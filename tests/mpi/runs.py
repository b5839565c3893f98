"""Runs whose bits must not depend on the strategy, nor on the number of ranks."""

import json
import sys

import pandas as pd

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
