"""Runs in which ranks die while others go on: what the tests and the whole matrix share."""

import json

from lockstep.distributed.launcher import SURVIVING
from tests.conftest import REPOSITORY, mpirun, run
from tests.mpi.matrix import PARTS

TRAIN = [
    *("--shards", 4, "--batch", 64, "--epochs", 2, "--checkpoint-every", "5 steps"),
    *("--model", "tests.mpi.models:busy", "--ema", 0.9, "--oversubscribe"),
]
STEPS = 44


def surviving(ranks):
    """Return the words that start Python on ranks of which some may die."""
    launcher, *words = mpirun(ranks)
    return [launcher, *SURVIVING, *words]


def train(digits, output, launcher, ranks, *flags, fault=""):
    """Train in the pipeline to whatever end."""
    words = ["--data", digits, "--partition", digits / "4/shards.csv", "--output", output]
    stage = [*launcher, "-m", "lockstep", "train", *words, *TRAIN, "--ranks", ranks, *flags]
    return run(["env", f"LOCKSTEP_FAULT={fault}", *stage], REPOSITORY)


def trained(digits, output, launcher, ranks, *flags, fault=""):
    """Train in the pipeline; return the hashes of what came of it, and the record."""
    done = train(digits, output, launcher, ranks, *flags, fault=fault)
    assert done.returncode == 0, done.stderr
    record = json.loads((output / "train.json").read_text())
    return {part: record[key] for part, key in PARTS.items()}, record
