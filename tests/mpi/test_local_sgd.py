"""local_sgd through real mpirun: its replicas do not know how many ranks hold them."""

import json
import sys

import pytest

from lockstep import tensors as state
from tests.conftest import REPOSITORY, mpirun
from tests.crew import run_shared
from tests.mpi.matrix import launch
from tests.mpi.test_promise import RUNS, bits, train

pytestmark = pytest.mark.thorough

PYTHON = [sys.executable]
# Steps between two averages, and the numbers of ranks to try it on.
SIZES = {0: [1, 4], 1: [1, 2], 7: [1, 2, 4]}


@pytest.fixture(scope="module")
def late(digits, tmp_path_factory):
    """Return the folder and the record of a run that is never averaged."""
    output = tmp_path_factory.mktemp("late")
    how = ["--strategy", "local_sgd", "--sync-every", 0]
    return output, train(digits, output, "cnn", mpirun(2), 2, *how)


@pytest.fixture(scope="module")
def everywhere(digits, tmp_path_factory):
    """Return the folder with the results of each number of steps between averages and of ranks."""
    folder = tmp_path_factory.mktemp("everywhere")
    for ranks in (1, 2, 4):
        flags = {
            f"{sync_every}-{ranks}": [
                *("--partition", str(digits / "4" / "shards.csv"), "--epochs", "2"),
                *("--snapshots", "2", "--ranks", str(ranks), "--oversubscribe"),
                *("--strategy", "local_sgd", "--sync-every", str(sync_every)),
                *map(str, RUNS["busy"]),
            ]
            for sync_every, sizes in SIZES.items()
            if ranks in sizes
        }
        launch(mpirun(ranks) if ranks > 1 else PYTHON, flags, digits, folder)
    return folder


@pytest.mark.parametrize("sync_every", SIZES)
def test_the_bits_are_the_same_at_any_number_of_ranks(sync_every, everywhere):
    found = []
    for ranks in SIZES[sync_every]:
        output = everywhere / f"{sync_every}-{ranks}"
        record = json.loads((output / "train.json").read_text())
        found.append(bits(output, record))
        assert record["bytes_sent"] == [record["bytes_sent"][0]] * ranks
    assert all(one == found[0] for one in found[1:])
    assert len(found[0]["snapshots"]) == (2 if sync_every else 4)


def test_it_sends_as_often_as_it_averages(late, digits, tmp_path):
    records = {0: late[1]}
    for sync_every in (1, 5):
        how = ["--strategy", "local_sgd", "--sync-every", sync_every]
        records[sync_every] = train(digits, tmp_path / str(sync_every), "cnn", mpirun(2), 2, *how)
    sent = {often: record["bytes_sent"][0] for often, record in records.items()}
    record = records[1]
    steps, parameters = record["steps"], record["parameters"]
    assert sent[0] == 0
    assert sent[1] == steps * parameters * 4
    assert sent[5] == steps // 5 * parameters * 4


def test_one_average_at_the_end_is_the_same_by_train_and_by_average(late, digits, tmp_path):
    how = ["--strategy", "local_sgd", "--sync-every"]
    late, record = late
    replicas = sorted(path.name for path in (late / "snapshots").iterdir())
    assert replicas == [f"replica-000{shard}.safetensors" for shard in range(4)]
    first = state.read(late / "snapshots" / replicas[0])
    last = state.read(late / "model.safetensors")
    assert all((first[name] == last[name]).all() for name in first)

    words = ["average", "--results", late, "--data", digits]
    done = run_shared([*PYTHON, "-m", "lockstep", *words], REPOSITORY)
    assert done.returncode == 0, done.stderr
    averaged = json.loads((late / "averaged.json").read_text())
    assert averaged["snapshots"] == replicas
    assert averaged["model_sha256"] != record["model_sha256"]
    once = train(digits, tmp_path / "once", "cnn", PYTHON, 1, *how, record["steps"])
    assert averaged["model_sha256"] == once["model_sha256"]

    (late / "snapshots" / replicas[2]).unlink()
    done = run_shared([*PYTHON, "-m", "lockstep", *words], REPOSITORY)
    assert done.returncode == 2
    assert f"{replicas[2]}: No such file or directory; train again" in done.stderr
