"""Runs whose bits must not depend on the strategy, nor on the number of ranks."""

import sys
from collections.abc import Iterable
from pathlib import Path

from tests.conftest import mpirun
from tests.mpi.matrix import launch

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
    "shared": ("--model", "tests.mpi.models:Shared", "--shards", 4, "--batch", 64, *ADAMW),
    "bfloat16": ("--shards", 4, "--batch", 128, "--precision", "bfloat16"),
    "six shards": ("--model", "tests.mpi.models:busy", "--shards", 6, "--batch", 96, *SGD),
}
Case = tuple[str, int, tuple[object, ...]]
"""A run's name, the number of ranks, and further flags."""


def train_all(cases: Iterable[Case], data: Path, folder: Path) -> dict[Case, dict[str, str | None]]:
    """Train and evaluate cases, all of one number of ranks by one launch; return their hashes."""
    found = {}
    cases = list(dict.fromkeys(cases))
    for ranks in sorted({ranks for _, ranks, _ in cases}):
        alike = {f"{ranks}-{i}": case for i, case in enumerate(cases) if case[1] == ranks}
        flags = {name: [str(word) for word in _flags(case, data)] for name, case in alike.items()}
        launcher = mpirun(ranks) if ranks > 1 else [sys.executable]
        found |= dict(zip(alike.values(), launch(launcher, flags, data, folder), strict=True))
    return found


def _flags(case: Case, data: Path) -> list[object]:
    name, ranks, how = case
    shards = RUNS[name][RUNS[name].index("--shards") + 1]
    flags = ["--partition", data / str(shards) / "shards.csv", "--ranks", ranks, "--oversubscribe"]
    return [*flags, "--epochs", 2, "--snapshots", 1, *RUNS[name], *how]
