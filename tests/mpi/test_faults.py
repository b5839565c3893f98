"""A rank that fails, hangs or computes nonsense ends the job, and says who, where and why."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import REPOSITORY, environment, mpirun, run, thorough
from tests.crew import run_shared
from tests.mpi.models import signature


def words(data, output, ranks, *flags):
    """Return the words that train on so many ranks, with a checkpoint every 5 steps."""
    flags = ["--output", output, "--ranks", ranks, "--epochs", 3, "--oversubscribe", *flags]
    flags += ["--data", data, "--partition", data / "4" / "shards.csv"]
    flags += ["--checkpoint-every", "5 steps"]
    return [*mpirun(ranks), "-m", "lockstep", "train", *flags]


def train(data, output, ranks, *flags, start=run, **env):
    """Train, with more in the environment, to whatever end."""
    assigned = [f"{name}={value}" for name, value in env.items()]
    return start(["env", *assigned, *words(data, output, ranks, *flags)], REPOSITORY, timeout=120)


def train_shared(data, output, ranks, *flags, **env):
    """Train to an end to which all ranks come."""
    return train(data, output, ranks, *flags, start=run_shared, **env)


def steps(output):
    """Return the steps of the checkpoints that there are."""
    return sorted(int(p.name.split("-")[1]) for p in output.glob("checkpoints/*/step-*"))


def line_of(done, stage="lockstep train"):
    """Return the line with which a run was refused, with status 2."""
    assert done.returncode == 2, done.stderr
    (line, *_) = [line for line in done.stderr.splitlines() if line.startswith(stage)]
    return line


@pytest.mark.parametrize(
    "flags", [(), thorough(("--strategy", "ddp")), thorough(("--strategy", "pipeline"))]
)
def test_a_loss_that_is_no_number_names_step_shard_and_sample(digits, tmp_path, flags):
    images = np.load(digits / "train" / "images.npy")
    known = [signature(image) for image in images]
    table = np.loadtxt(digits / "4" / "shards.csv", delimiter=",", skiprows=1, dtype=int)
    sample = next(i for i, one in enumerate(known) if known.count(one) == 1 and table[i, 2] == 3)
    model = ("--model", "tests.mpi.models:delicate")
    done = train_shared(digits, tmp_path, 2, *model, *flags, UNBEARABLE=known[sample])
    line = line_of(done)
    assert re.search(rf"loss: nan in step \d+: shard 3, samples {sample};", line), line
    step = int(re.search(r"step (\d+)", line)[1])
    assert all(saved < step for saved in steps(tmp_path))
    assert not (tmp_path / "train.json").exists()


@pytest.mark.thorough
def test_a_run_that_diverges_stops_and_keeps_what_was_good(digits, tmp_path):
    flags = ("--optimizer", "sgd", "--schedule", "constant", "--lr", 1e9)
    line = line_of(train_shared(digits, tmp_path, 2, *flags))
    assert re.search(r"(loss: (nan|inf) in step|is not finite after step)", line)
    assert "smaller lr" in line


def test_ranks_that_drift_apart_are_named(digits, tmp_path):
    done = train_shared(digits, tmp_path, 2, "--model", "tests.mpi.models:Drifting")
    line = line_of(done)
    assert "body.0.weight on rank 1" in line
    assert os.uname().nodename in line
    assert all(saved < 10 for saved in steps(tmp_path))


@pytest.mark.parametrize("action", [thorough("raise"), thorough("exit"), "kill", "hang"])
def test_a_rank_that_fails_is_named_and_the_next_run_goes_on(digits, tmp_path, action):
    done = train(digits, tmp_path, 2, "--timeout", 3, LOCKSTEP_FAULT=f"step:7:1:{action}")
    assert done.returncode != 0
    assert not (tmp_path / "train.json").exists()
    assert "rank 0 of 2" in done.stderr  # its stacks: where it waited
    assert "sync_sgd.py" in done.stderr
    named = {
        "raise": r"rank 1 of 2 .*RuntimeError: a fault on demand",
        "exit": r"process rank 1 with PID \d+ on node \S+ exited|rank 1 .*without calling",
        "kill": r"process rank 1 with PID \d+ on node \S+ exited on\s+signal 9",
        "hang": r"rank 1 of 2 .*in no communication over MPI: it may be what hangs",
    }
    assert re.search(named[action], done.stderr, re.DOTALL), done.stderr
    assert steps(tmp_path) == [5]
    again = train_shared(digits, tmp_path, 1)
    assert again.returncode == 0, again.stderr
    assert "going on after step 5" in again.stderr
    parts = json.loads((tmp_path / "train.json").read_text())["segments"]
    assert [(part["first_step"], part["last_step"]) for part in parts] == [(0, 5), (5, 33)]


@pytest.mark.thorough
def test_a_rank_that_never_has_a_model_is_found(digits, tmp_path):
    more = ["--model", "tests.mpi.models:sleepy_on_rank_1", "--timeout", 3]
    done = train(digits, tmp_path, 2, *more)
    assert done.returncode != 0
    assert "rank 0 of 2" in done.stderr
    assert re.search(r"\w+ on group 'default' was not answered within 3 s", done.stderr)
    assert re.search(r"rank 1 of 2 .*in no communication over MPI: it may be what", done.stderr)
    assert "in sleepy_on_rank_1" in done.stderr
    assert not (tmp_path / "train.json").exists()


@pytest.mark.thorough
def test_a_rank_that_runs_out_of_memory_says_so(digits, tmp_path):
    done = train(digits, tmp_path, 2, "--model", "tests.mpi.models:Hungry")
    assert done.returncode != 0
    assert re.search(r"rank 1 of 2 .*(MemoryError|can't allocate memory)", done.stderr), done.stderr
    assert not (tmp_path / "train.json").exists()


@pytest.mark.parametrize("to", ["mpirun", thorough("rank 1")])
def test_a_run_that_is_told_to_stop_saves_exits_with_75_and_goes_on(digits, tmp_path, to):
    command = [str(word) for word in words(digits, tmp_path, 2, "--epochs", 2000)]
    log = (tmp_path / "log").open("w+")
    job = subprocess.Popen(command, cwd=REPOSITORY, env=environment(), stderr=log, text=True)
    while not steps(tmp_path):
        assert job.poll() is None
        time.sleep(0.05)
    children = subprocess.run(["pgrep", "-P", str(job.pid)], capture_output=True, text=True)
    os.kill(job.pid if to == "mpirun" else int(children.stdout.split()[-1]), signal.SIGUSR1)
    assert job.wait(60) == 75
    log.seek(0)
    found = re.search(r"interrupted by SIGUSR1 after step (\d+)", log.read())
    assert steps(tmp_path)[-1] == int(found[1])
    assert not (tmp_path / "train.json").exists()


@pytest.mark.thorough
def test_no_rank_leaves_before_the_run_is_saved(digits, tmp_path):
    # They look after the first step; then rank 0's disk is slow.
    fault = "step:0:0:usr1,written:1:0:slow"
    assert train(digits, tmp_path, 2, LOCKSTEP_FAULT=fault).returncode == 75
    assert steps(tmp_path) == [1]


@pytest.mark.thorough
@pytest.mark.parametrize("launcher", [[], ["-m", "torch.distributed.run", "--standalone"]])
def test_a_run_without_mpi_exits_with_75_as_well(digits, tmp_path, launcher):
    program = words(digits, tmp_path, 1)[len(mpirun(1)) :]
    command = ["env", "LOCKSTEP_FAULT=step:3:0:usr1", sys.executable, *launcher, *program]
    done = run(command, REPOSITORY)
    found = "exitcode  : 75" in done.stderr if launcher else done.returncode == 75
    assert found, done.stderr
    assert steps(tmp_path)


def test_data_that_have_changed_are_refused(digits, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(digits, data)
    images = data / "train" / "images.npy"
    content = bytearray(images.read_bytes())
    content[-1] ^= 1
    images.write_bytes(content)
    assert f"{images}: has SHA-256" in line_of(train_shared(data, tmp_path / "out", 2))
    images.write_bytes(content[:-1])
    assert f"{images}: not a whole array" in line_of(train_shared(data, tmp_path / "out", 2))
    assert not steps(tmp_path / "out")


def test_a_buffer_that_no_checkpoint_can_keep_is_refused(digits, tmp_path):
    line = line_of(train_shared(digits, tmp_path, 1, "--model", "tests.mpi.models:Forgetful"))
    assert "the buffer seen changes in training, and is not in the state_dict" in line
    assert not steps(tmp_path)


def blocked(process):
    """Return whether a process lets SIGUSR1 wait."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    mask = int(re.search(r"SigBlk:\s*(\w+)", status)[1], 16)
    return bool(mask & 1 << (signal.SIGUSR1 - 1))


@pytest.mark.thorough
def test_a_signal_that_comes_while_torch_is_imported_is_not_lost(digits, tmp_path):
    command = [sys.executable, *words(digits, tmp_path, 1, "--epochs", 2000)[len(mpirun(1)) :]]
    job = subprocess.Popen(list(map(str, command)), cwd=REPOSITORY, env=environment())
    while not blocked(job):
        assert job.poll() is None
        time.sleep(0.01)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(60) == 75
    assert steps(tmp_path)
