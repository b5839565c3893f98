"""Launches that would go wrong are refused in one line that says how to mend them."""

import io
import json
import os
import shutil
import socket
import sys

import numpy as np
import pandas as pd
import pytest

from lockstep.files import sha256
from lockstep.provenance import CAPS
from tests.conftest import REPOSITORY, mpirun, run, thorough
from tests.crew import run_shared
from tests.damage import change_manifest


@pytest.mark.parametrize("ranks", [thorough(1), 2])
def test_check_says_what_came_up(ranks, tmp_path):
    output = tmp_path / "check.json"
    words = ["check", "--ranks", ranks, "--models", "cnn", "linear", "--output", output]
    words += ["--seconds", 1, "--oversubscribe"]
    done = run_shared([*mpirun(ranks), "-m", "lockstep", *words], tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads(output.read_text())
    assert [rank["rank"] for rank in record["ranks"]] == list(range(ranks))
    mine = sorted(os.sched_getaffinity(0))
    bound = "all" if len(mine) == os.cpu_count() else ", ".join(map(str, mine))
    assert {rank["bound_to"] for rank in record["ranks"]} == {bound}
    assert record["models"] == {"cnn": 21840, "linear": 7850}
    assert record["mpi"].startswith("Open MPI")
    assert record["backends"]["gloo"]["median_ms"] > 0
    table = pd.read_csv(tmp_path / "check.csv")
    if ranks == 1:
        assert table.empty
        assert "one rank: no communication to measure" in done.stdout
    else:
        assert set(table["backend"]) == set(record["backends"])
        assert table["operation"].nunique() == 11
        gradients = {4 * parameters for parameters in record["models"].values()}
        assert gradients <= set(table["bytes"][table["operation"] == "all_reduce"])
        bandwidth = table["bytes"] / table["median_us"] / 1e3
        sized = table["bytes"] > 0
        assert table["algbw_gbs"][sized].to_numpy() == pytest.approx(bandwidth[sized], rel=1e-4)
        assert "busbw_gbs" in done.stdout


def refused(done) -> str:
    """Return the one line with which a command was refused."""
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("lockstep ")]
    assert lines, done.stderr
    assert "Traceback" not in done.stderr
    return lines[0]


@pytest.mark.parametrize("launcher", [[sys.executable], mpirun(2)])
def test_another_number_of_ranks_than_asked_for_is_refused(launcher, tmp_path):
    words = ["check", "--ranks", 4, "--oversubscribe", "--output", tmp_path / "check.json"]
    line = refused(run([*launcher, "-m", "lockstep", *words], tmp_path))
    assert "4 were asked for" in line
    assert "mpirun -n 4" in line
    assert not (tmp_path / "check.json").exists()


def test_more_threads_than_cores_are_refused_without_leave(tmp_path):
    words = ["check", "--ranks", 2, "--threads", 500, "--output", tmp_path / "check.json"]
    line = refused(run_shared([*mpirun(2), "-m", "lockstep", *words], tmp_path))
    assert "oversubscribe: true" in line
    assert not (tmp_path / "check.json").exists()


def test_ranks_bound_to_fewer_cores_than_threads_are_told_of_the_binding(tmp_path):
    bound = [word if word != "none" else "core" for word in mpirun(1)]
    words = ["check", "--ranks", 1, "--threads", 2, "--output", tmp_path / "check.json"]
    line = refused(run([*bound, "-m", "lockstep", *words], tmp_path))
    assert "--bind-to none" in line


def test_a_model_that_does_not_take_the_input_is_refused(tmp_path):
    words = ["check", "--ranks", 1, "--shape", 1, 8, 8, "--output", tmp_path / "check.json"]
    line = refused(run_shared([sys.executable, "-m", "lockstep", *words], tmp_path))
    assert "16 x 16 pixels or more, not 8 x 8" in line


def test_more_ranks_than_shards_are_refused(tmp_path):
    words = ["train", "--data", "d", "--partition", "p", "--output", "o", "--ranks", 5]
    line = refused(run_shared([sys.executable, "-m", "lockstep", *words], tmp_path))
    assert "5 ranks cannot have a shard each of 4; take at most 4" in line


def test_a_rank_that_fails_brings_the_others_down(digits, tmp_path):
    words = ["train", "--data", digits, "--partition", digits / "4" / "shards.csv"]
    words += ["--model", "tests.mpi.models:broken_on_rank_1", "--output", tmp_path / "out"]
    done = run([*mpirun(2), "-m", "lockstep", *words, "--ranks", 2], REPOSITORY, timeout=60)
    assert done.returncode == 2
    assert "lockstep train, rank 1: model: tests.mpi.models:broken_on_rank_1" in done.stderr
    assert "no room in the museum" in done.stderr
    assert not (tmp_path / "out" / "train.json").exists()


def make_folder(folder, digits, rank):
    """Make what a rank works in: the prepared data, shards, a model; some of rank 1's are other."""
    folder.mkdir()
    for name in ("data", "inverted", "brighter", "damaged-0", "damaged-1"):
        shutil.copytree(digits, folder / name)
    (folder / f"damaged-{rank}" / "train" / "images.npy").write_bytes(inverted(digits))
    for name in ("shards.csv", "other.csv"):
        shutil.copy(digits / "4" / "shards.csv", folder / name)
    (folder / "own.py").write_text("from tests.mpi.models import busy as make\n")
    if rank == 0:
        return
    (folder / "inverted" / "train" / "images.npy").write_bytes(inverted(digits))
    sums = json.loads((digits / "manifest.json").read_text())["sha256"]
    sums["train/images.npy"] = sha256(folder / "inverted" / "train" / "images.npy")
    change_manifest(folder / "inverted", sha256=sums)
    change_manifest(folder / "brighter", mean=[0.5])
    lines = (folder / "other.csv").read_text().splitlines()
    (folder / "other.csv").write_text("\n".join(lines) + "\n\n")
    with (folder / "own.py").open("a") as file:
        file.write("WIDTH = 1\n")


def inverted(digits):
    """Return the file of the inverted images."""
    file = io.BytesIO()
    np.save(file, 255 - np.load(digits / "train" / "images.npy"))
    return file.getvalue()


def test_ranks_that_have_not_the_same_are_refused_before_anything_is_trained(digits, tmp_path):
    for rank in (0, 1):
        make_folder(tmp_path / str(rank), digits, rank)
    program = [*mpirun(2), "-m", "tests.mpi.programs.unlike", tmp_path]
    done = run(program, REPOSITORY)
    assert done.returncode == 0, done.stderr
    said, again = (json.loads((tmp_path / f"said-{r}.json").read_text()) for r in (0, 1))
    assert said == again  # no rank is left behind
    host = socket.gethostname()
    digest = sha256(digits / "train" / "images.npy")[:12]
    one = f"on rank 1 ({host}), and"
    words = {
        "flags": [f"flags: backend is gloo {one} auto on rank 0 ({host})", "the same command"],
        "data": ["data: train/images.npy is", one, f"{digest} on rank 0", "same prepared data"],
        "mean": [f"data: mean is [0.5] {one} [0.", "same prepared data"],
        "files": ["damaged-0/train/images.npy: has SHA-256", digest, f"by rank 0 on {host}"],
        "files of another host": ["damaged-1/train/images.npy: has", f"by rank 1 on {host}"],
        "partition": ["partition: SHA-256 is", one, "same table of shards"],
        "caps": [f"caps: {CAPS[0]} is avx2 {one} not set on rank 0", "same variables"],
        "code": ["code: own.py is", one, "same files"],
        "weights": ["initial weights: SHA-256 is", one, "neither on the rank"],
        "momentum": ["weights: exp_avg of 0.weight on rank", "after step 2", "before"],
        "momentum of ddp": ["weights: exp_avg of 0.weight on rank", "after step 2", "before"],
        "momentum of hybrid": ["weights: exp_avg of 0.weight on rank", "after step 2", "before"],
    }
    assert said.pop("alike") == said.pop("slow files") == ""
    assert said.keys() == words.keys()
    for name, expected in words.items():
        assert "\n" not in said[name]
        for some in expected:
            assert some in said[name], name


@pytest.mark.skipif(not shutil.which("taskset"), reason="there is no taskset on the PATH")
def test_a_launch_that_may_use_one_core_is_refused_two_ranks(tmp_path):
    core = min(os.sched_getaffinity(0))
    words = ["check", "--ranks", 2, "--output", tmp_path / "check.json"]
    launcher = ["taskset", "-c", core, *mpirun(2)]
    line = refused(run([*launcher, "-m", "lockstep", *words], tmp_path))
    assert "which has 1 cores for them" in line
