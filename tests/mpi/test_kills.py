"""Nothing lost: runs that are killed or stopped anywhere end with the bits of one that was not.

`make kills` has the whole matrix; here is what has every pair of a place and of who is killed.
"""

import json
import sys

import pytest

from tests.conftest import REPOSITORY, mpirun
from tests.crew import run_shared
from tests.mpi.kills import POINTS, Kill, finish, survive, walk
from tests.mpi.matrix import PARTS

KILLS = [
    Kill("first step", "rank 1", 2),
    Kill("first step", "mpirun", 4),
    Kill("mid-epoch", "rank 3", 4),
    Kill("mid-epoch", "mpirun", 2),
    Kill("written", "rank 0", 2),
    Kill("written", "mpirun", 4),
    Kill("synced", "rank 2", 4),
    Kill("synced", "mpirun", 2),
    Kill("renamed", "rank 0", 4),
    Kill("renamed", "mpirun", 2),
]


@pytest.fixture(scope="module")
def never_killed(digits, tmp_path_factory):
    """The hashes of a run that one process trains from its first step to its last."""
    return finish(digits, tmp_path_factory.mktemp("never") / "run", 1)


@pytest.mark.thorough
@pytest.mark.parametrize("ranks", [2, 4])
def test_a_run_that_is_killed_everywhere_has_the_bits_of_one_never_killed(
    ranks, digits, never_killed, tmp_path
):
    kills = [kill for kill in KILLS if kill.ranks == ranks]
    assert {kill.point for kill in kills} == set(POINTS)
    for kill in kills:
        survive(kill, digits, tmp_path / "run")
    assert finish(digits, tmp_path / "run", 1) == never_killed


@pytest.mark.thorough
def test_a_walk_of_ten_interruptions_ends_with_the_same_bits(digits, never_killed, tmp_path):
    found = walk(0, (1, 1, 1, 1, 2), digits, tmp_path / "run")
    assert len(found.pieces) == 10
    assert found.hashes == never_killed


# Strategies, each stopped before step 33 of 44, on 4 ranks, after the checkpoint of step 30.

ANYWHERE = {
    "local_sgd": ["--strategy", "local_sgd", "--sync-every", "8"],  # 6 steps after an average
    "one shot": ["--strategy", "local_sgd", "--sync-every", "0"],
    "pipeline": ["--strategy", "pipeline"],
    "hybrid": ["--strategy", "hybrid", "--stages", "2"],
    "fsdp": ["--strategy", "fsdp"],
}
ON_AS_MANY = {"ddp": ["--strategy", "ddp"], "fast": ["--reduction", "fast"]}
ON_ONE = {"data_parallel": ["--strategy", "data_parallel"]}
SINGLE = ["--strategy", "single"]


@pytest.fixture(scope="module")
def results(digits, tmp_path_factory):
    """The folder of the results: NAME was stopped and taken on, NAME-whole never stopped."""
    folder = tmp_path_factory.mktemp("strategies")

    def launch(launcher, *parts):
        path = folder / "parts.json"
        common = [
            *("--model", "tests.mpi.models:busy", "--shards", "4", "--batch", "64", "--flip"),
            *("--optimizer", "adamw", "--weight-decay", "0.01", "--clip", "0.5", "--epochs", "2"),
            *("--snapshots", "2", "--checkpoint-every", "5 steps", "--oversubscribe"),
            *("--data", str(digits), "--partition", str(digits / "4" / "shards.csv")),
        ]
        path.write_text(
            json.dumps([(str(folder / name), stop, [*common, *f]) for name, stop, f in parts])
        )
        done = run_shared([*launcher, "-m", "tests.mpi.programs.interrupted", path], REPOSITORY)
        assert done.returncode == 0, done.stderr

    launch(
        mpirun(4),
        *[(name, 33, flags) for name, flags in (ANYWHERE | ON_AS_MANY).items()],
        *[(name, None, flags) for name, flags in ON_AS_MANY.items()],
        *[(f"{name}-whole", None, flags) for name, flags in ON_AS_MANY.items()],
    )
    launch(mpirun(2), *[(name, None, flags) for name, flags in ANYWHERE.items()])
    alone = {name: flags if "local_sgd" in flags else SINGLE for name, flags in ANYWHERE.items()}
    launch(
        [sys.executable],
        *[(name, stop, flags) for stop in (33, None) for name, flags in ON_ONE.items()],
        *[(f"{name}-whole", None, flags) for name, flags in (alone | ON_ONE).items()],
    )
    return folder


@pytest.mark.thorough
@pytest.mark.parametrize("name", [*ANYWHERE, *ON_AS_MANY, *ON_ONE])
def test_every_strategy_goes_on_to_the_bits_that_it_would_have_had(name, results):
    there, whole = (
        json.loads((results / folder / "train.json").read_text())
        for folder in (name, f"{name}-whole")
    )
    ranks = [len(part["hosts"]) for part in there["segments"]]
    assert ranks == ([4, 2] if name in ANYWHERE else [4, 4] if name in ON_AS_MANY else [1, 1])
    assert [(part["first_step"], part["last_step"]) for part in there["segments"]] == [
        (0, 30),
        (30, 44),
    ]
    assert {p: there[key] for p, key in PARTS.items()} == {
        p: whole[key] for p, key in PARTS.items()
    }
