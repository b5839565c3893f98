"""Every backend and every way for ranks to find each other gives one process's bits."""

import json
import os
import socket
import subprocess
import sys

import pytest

from tests.conftest import UCX, environment, mpirun, needs_ucx, run, thorough
from tests.crew import run_shared

SETTINGS = [
    "--shards",
    "6",
    "--epochs",
    "1",
    "--snapshots",
    "1",
    "--batch",
    "252",
    "--oversubscribe",
]


def words(digits, output, *more):
    data = ["--data", digits, "--partition", digits / "6" / "shards.csv", "--output", output]
    return ["-m", "lockstep", "train", *data, *SETTINGS, *more]


def record(output):
    return json.loads((output / "train.json").read_text())


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def reference(digits, tmp_path_factory):
    output = tmp_path_factory.mktemp("reference")
    done = run_shared([sys.executable, *words(digits, output, "--ranks", 1)], output)
    assert done.returncode == 0, done.stderr
    assert record(output)["backend"] == "gloo"
    return record(output)["model_sha256"]


@pytest.mark.parametrize(
    ("backend", "init_method", "ucx"),
    [
        ("auto", "auto", []),
        ("gloo", "mpi://", []),
        ("mpi4py", "file://{folder}/meeting", []),
        ("gloo", "tcp://127.0.0.1:{port}", []),
        pytest.param("mpi4py", "auto", UCX, marks=[needs_ucx, pytest.mark.thorough]),
    ],
)
def test_ranks_of_mpi_meet(backend, init_method, ucx, reference, digits, tmp_path):
    (tmp_path / "meeting").write_bytes(b"what a killed run left behind")
    init_method = init_method.format(folder=tmp_path, port=free_port())
    more = ["--ranks", 2, "--backend", backend, "--init-method", init_method]
    done = run_shared(["env", *ucx, *mpirun(2), *words(digits, tmp_path, *more)], tmp_path)
    assert done.returncode == 0, done.stderr
    assert record(tmp_path)["backend"] == ("gloo" if backend == "gloo" else "mpi4py")
    assert record(tmp_path)["model_sha256"] == reference


@pytest.mark.parametrize("init_method", ["env://", thorough("file://{folder}/meeting")])
def test_ranks_without_a_launcher_meet(init_method, reference, digits, tmp_path):
    variables = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    more = ["--ranks", 2, "--init-method", init_method.format(folder=tmp_path)]
    ranks = [
        subprocess.Popen(
            [sys.executable, *map(str, words(digits, tmp_path, *more))],
            env=environment() | variables | {"RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for rank in ranks:
        _, errors = rank.communicate(timeout=120)
        assert rank.returncode == 0, errors
    assert record(tmp_path)["launcher"] == "environment"
    assert record(tmp_path)["model_sha256"] == reference


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--backend", "nccl"], "nccl is for GPUs"),
        (["--init-method", "env://"], "MASTER_ADDR and MASTER_PORT"),
        (["--init-method", "http://x"], "init_method"),
        (["--init-method", "tcp://127.0.0.1:99999"], "cannot meet by tcp://127.0.0.1:99999"),
        (["--init-method", "file:///nowhere/meeting"], "expected one in a folder"),
    ],
)
def test_what_cannot_be_had_is_refused(more, reason, digits, tmp_path):
    assert "MASTER_ADDR" not in os.environ
    done = run_shared([*mpirun(2), *words(digits, tmp_path, "--ranks", 2, *more)], tmp_path)
    assert done.returncode == 2, done.stderr
    assert reason in done.stderr
    assert not (tmp_path / "train.json").exists()


def test_mpi_without_mpi_is_refused(digits, tmp_path):
    more = ["--ranks", 1, "--init-method", "mpi://"]
    done = run_shared([sys.executable, *words(digits, tmp_path, *more)], tmp_path)
    assert done.returncode == 2, done.stderr
    assert "launch with mpirun" in done.stderr


def test_a_file_that_is_no_store_is_not_waited_for_without_end(digits, tmp_path):
    left = tmp_path / "left"
    rank = ["env", "RANK=1", "WORLD_SIZE=2", sys.executable]
    more = ["--ranks", 2, "--init-method", f"file://{left}", "--timeout", 1]
    left.write_bytes(b"what something else has left behind")
    done = run_shared([*rank, *words(digits, tmp_path, *more)], tmp_path, timeout=120)
    assert done.returncode == 2, done.stderr
    assert f"{left} holds something else" in done.stderr
    left.unlink()  # and nobody else comes
    done = run_shared([*rank, *words(digits, tmp_path, *more)], tmp_path, timeout=120)
    assert done.returncode == 2, done.stderr
    assert "within 1 s" in done.stderr


def test_another_launchers_ranks_are_no_worlds_of_one(tmp_path):
    code = "from lockstep.distributed.rendezvous import from_mpi; from_mpi()"
    done = run(["env", "RANK=1", "WORLD_SIZE=2", sys.executable, "-c", code], tmp_path)
    assert done.returncode != 0
    assert "mpi://: WORLD_SIZE is 2, and MPI has started 1 rank" in done.stderr
