"""The commands that one types: launch, stop, diff."""

import os
import shutil
import subprocess
import sys
import tempfile
import time

import pandas as pd
import pytest

from tests.conftest import REPOSITORY, environment, run
from tests.crew import run_shared
from tests.damage import change_record

LOCKSTEP = [sys.executable, "-m", "lockstep"]


def words(digits, output, *flags):
    paths = ["--data", digits, "--partition", digits / "4/shards.csv", "--output", output]
    return ["train", *paths, "--oversubscribe", "--epochs", 2, *flags]


def train(digits, output, *flags):
    command = [*LOCKSTEP, *words(digits, output, "--ranks", 1, "--strategy", "single", *flags)]
    done = run_shared(command, REPOSITORY)
    assert done.returncode == 0, done.stderr
    return output


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    return train(digits, tmp_path_factory.mktemp("trained") / "run")


def diff(one, other):
    done = run_shared([*LOCKSTEP, "diff", one, other], REPOSITORY)
    return done.returncode, done.stdout


def test_ranks_are_started_and_stopped_by_hand(digits, trained, tmp_path):
    launch = [*LOCKSTEP, "launch", "-n", 3]  # as whoever this is, on however many cores
    done = run([*launch, *words(digits, tmp_path / "three", "--ranks", 3)], tmp_path)
    assert done.returncode == 0, done.stderr
    status, said = diff(trained, tmp_path / "three")
    assert status == 0
    assert "ranks: 1 | 3" in said
    assert said.count("the same bits") == 4  # it has no BatchNorm

    command = map(str, [*launch, *words(digits, tmp_path / "long", "--ranks", 3)])
    with (tmp_path / "log").open("w") as log:
        job = subprocess.Popen(
            [*command, "--epochs", "2000"], cwd=tmp_path, env=environment(), stdout=log, stderr=log
        )
    while not list((tmp_path / "long").glob("checkpoints/*/")):
        assert job.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.1)
    stopped = run([*LOCKSTEP, "stop", tmp_path / "long"], tmp_path)
    assert stopped.returncode == 0, stopped.stderr
    assert "stops with exit status 75 once it has saved" in stopped.stdout
    assert job.wait(60) == 75, (tmp_path / "log").read_text()
    assert list((tmp_path / "long").glob("checkpoints/*/step-*"))
    assert not (tmp_path / "long" / "checkpoints" / "stop").exists()


def test_what_cannot_be_stopped_or_launched_is_refused(trained, tmp_path):
    for command, said in (
        (["stop", tmp_path], "nothing trains here, or not yet"),
        (["stop", trained], "trained to its end"),
        (["launch", "-n", 2], "say what the ranks are to run"),
        (["launch", "-n", 0, "train"], "-n: expected a number from 1"),
        (["diff", trained, tmp_path], "train.json"),
    ):
        done = run_shared([*LOCKSTEP, *command], REPOSITORY)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert said in line


def test_what_a_killed_mpirun_has_left_is_in_nobodys_way(tmp_path):
    """In a container process ids begin anew, and the folder for temporary files may stay."""
    script = tmp_path / "ranks.py"
    script.write_text(
        "import sys\nfrom mpi4py import MPI\nprint(*sys.argv[1:], MPI.COMM_WORLD.rank)\n"
    )
    # The shell becomes this program, which becomes mpirun: all with one process id.
    left = f"{tempfile.gettempdir()}/ompi.$$"
    spoil = f"mkdir -p {left} && touch {left}/pmix.{os.uname().nodename}.tool.$$ && exec "
    launch = f"{sys.executable} -m lockstep launch -n 2 {script} -- rank"
    variables = {k: v for k, v in environment().items() if not k.startswith("PRTE_MCA")}
    done = subprocess.run(
        ["bash", "-c", spoil + launch], env=variables, capture_output=True, text=True, timeout=60
    )
    assert sorted(done.stdout.split("\n")[:2]) == ["-- rank 0", "-- rank 1"], done.stderr


def test_diff_says_what_and_from_which_epoch_on(digits, trained, tmp_path):
    other = train(digits, tmp_path / "other", "--lr", 0.02)
    status, said = diff(trained, other)
    assert status == 1
    assert "lr: 0.01 | 0.02" in said
    assert "weights: different" in said
    assert "from epoch 1 on: lr is" in said
    same = shutil.copytree(trained, tmp_path / "same")
    status, said = diff(trained, same)
    assert status == 0
    assert said.startswith("both were trained from the same, in the same way")
    # Times are no difference, that of the validation neither.
    for folder, seconds in ((same, 1.5), (other, 2.5)):
        history = pd.read_csv(trained / "history.csv").assign(validation_seconds=seconds)
        history.loc[1, "loss"] += seconds
        history.to_csv(folder / "history.csv", index=False)
        change_record(folder, history_sha256=f"{seconds:.0f}" * 64)
    assert "from epoch 2 on: loss is" in diff(same, other)[1]


SCRIPT = """
import sys, torch, lockstep

with lockstep.init(shards=2, seed=0) as session:
    model = session.build(torch.nn.Linear, 3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    run = session.run(model, optimizer, folder=sys.argv[1])
    for step in run.steps(64, batch=8, epochs=int(sys.argv[2])):
        for shard in step:
            loss = model(torch.randn(len(shard.ids), 3)).square().sum()
            shard.backward(loss, items=len(shard.ids))
        optimizer.step()
"""


def test_a_loop_of_ones_own_is_stopped_by_hand(tmp_path):
    (tmp_path / "own.py").write_text(SCRIPT)
    command = [*LOCKSTEP, "launch", "-n", "2", "own.py", "out"]
    job = subprocess.Popen(
        [*command, "100000"], cwd=tmp_path, env=environment(), stderr=subprocess.DEVNULL
    )
    while not list((tmp_path / "out").glob("checkpoints/*/")):
        assert job.poll() is None
        time.sleep(0.1)
    stopped = run([*LOCKSTEP, "stop", "out"], tmp_path)
    assert stopped.returncode == 0, stopped.stderr
    assert job.wait(60) == 75
    (tmp_path / "done").mkdir()
    done = run([sys.executable, "own.py", "done", "1"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "trained to its end" in run([*LOCKSTEP, "stop", "done"], tmp_path).stderr


def test_a_run_that_nothing_trains_is_said_so_at_once(digits, tmp_path):
    command = [*LOCKSTEP, *words(digits, tmp_path / "cut", "--ranks", 1, "--strategy", "single")]
    done = run(["env", "LOCKSTEP_FAULT=step:5:0:usr1", *command], tmp_path)
    assert done.returncode == 75, done.stderr
    said = run([*LOCKSTEP, "stop", tmp_path / "cut"], tmp_path, timeout=20)
    assert said.returncode == 2
    assert "nothing is training here now" in said.stderr
