"""Ranks that come and go while a job runs: the bits are those of one process."""

import json
import subprocess
import sys
import time

import pytest

from tests.conftest import run, thorough
from tests.mpi.survivors import surviving, trained

# `pace` is the seconds that a shard takes at least: a rank that comes takes some seconds.
OWN = """
import sys, time, torch, lockstep
from torch import nn
from torch.nn.functional import cross_entropy

kind, pace = sys.argv[2], float(sys.argv[3])

def net():
    return nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.Dropout(0.2), nn.Linear(32, 3))

with lockstep.init(shards=8, seed=1, replace=kind == "replace", timeout=5) as session:
    was = session.rank
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(512, 8, generator=draw), torch.randint(0, 3, (512,), generator=draw)
    model = session.build(net)
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 50)
    run = session.run(
        model, optimizer, folder=sys.argv[1], scheduler=scheduler,
        configuration={"what newcomers say of themselves is long": "x" * 50_000},
    )
    for step in run.steps(512, batch=64, epochs=60):
        for shard in step:
            if step.number == 20 and (kind, was) == ("one", 1) or kind == f"shard {shard.index}":
                raise ValueError("a fault of this rank's")
            loss = cross_entropy(model(x[shard.ids]), y[shard.ids], reduction="sum")
            shard.backward(loss, items=len(shard.ids))
            time.sleep(pace)
        optimizer.step()
        scheduler.step()
        run.state["steps"] = step.number
        if step.number == 10:  # those that come later must find it so
            model[0].requires_grad_(False)
"""
RECORDED = ("model_sha256", "optimizer_sha256", "history", "steps")


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "own.py"
    path.write_text(OWN)
    return path


@pytest.fixture(scope="module")
def alone(script):
    assert run([sys.executable, script, "alone", "none", 0], script.parent).returncode == 0
    return record(script.parent / "alone")


def record(folder):
    return json.loads((folder / "run.json").read_text())


def launched(script, folder, ranks, kind, pace=0.0, faults=""):
    shared = folder.with_name("shared")
    shared.mkdir()
    variables = [f"LOCKSTEP_FAULT={faults}", f"OMPI_MCA_btl_sm_backing_directory={shared}"]
    done = run(["env", *variables, *surviving(ranks), script, folder, kind, pace], script.parent)
    # What ranks shared of memory is gone with a job that comes to its end, the dead ones', too.
    assert done.returncode or not [*shared.iterdir()]
    return done


def same(folder, alone):
    found = record(folder)
    assert {name: found[name] for name in RECORDED} == {name: alone[name] for name in RECORDED}
    return found["segments"]


@pytest.mark.parametrize(
    ("ranks", "faults"),
    [
        (3, "step:20:1:kill"),
        thorough(3, "step:20:0:kill"),
        thorough(4, "step:20:0:kill,step:20:2:kill-later"),
        thorough(2, "step:20:0:kill,step:400:+:kill-later"),
    ],
)
def test_a_rank_that_dies_is_replaced(script, alone, tmp_path, ranks, faults):
    done = launched(script, tmp_path / "r", ranks, "replace", 0.01, faults)
    assert done.returncode == 0, done.stderr
    segments = same(tmp_path / "r", alone)
    assert sum(len(part.get("joined", [])) for part in segments) >= faults.count(":2") // 2 + 1
    assert len(segments[-1]["hosts"]) == ranks or "+" in faults


def test_as_many_ranks_train_as_one_asks_for(script, alone, tmp_path):
    folder = tmp_path / "r"
    words = [*map(str, surviving(2)), str(script), str(folder), "none", "0.02"]
    job = subprocess.Popen(words, cwd=script.parent, stderr=subprocess.PIPE, text=True)

    def ask(word, ranks):
        done = run([sys.executable, "-m", "lockstep", word, folder, "--ranks", ranks], tmp_path)
        assert done.returncode == 0, done.stderr

    while not (folder / "checkpoints" / "lock").exists():
        assert job.poll() is None, job.communicate()[1]
        time.sleep(0.05)
    ask("grow", 4)
    said = ""
    while "joined after step" not in said:
        line = job.stderr.readline()
        assert line, said
        said += line
    ask("shrink", 3)
    said += job.communicate()[1]
    assert job.returncode == 0, said
    segments = same(folder, alone)
    assert [len(part["hosts"]) for part in segments] == [2, 4, 3], said
    assert "rank 3 of 4" in said
    assert "leaves after step" in said


def test_a_rank_with_other_code_is_refused_and_the_others_go_on(script, tmp_path):
    changed = tmp_path / "own.py"
    # It edits itself when all ranks have read it.
    edit = "    if was == 0: open(__file__, 'a').write('another = 1\\n')\n    for step in"
    changed.write_text(OWN.replace("    for step in", edit))
    done = launched(changed, tmp_path / "r", 3, "replace", 0.01, "step:20:1:kill")
    assert done.returncode == 0, done.stderr
    assert "a rank that was to join is refused: code: " in done.stderr
    assert len(record(tmp_path / "r")["segments"]) == 2


@pytest.mark.parametrize("ranks", [2, thorough(4)])
def test_an_exception_in_one_rank_is_survived_and_said(script, alone, tmp_path, ranks):
    done = launched(script, tmp_path / "r", ranks, "one")
    assert done.returncode == 0, done.stderr
    assert "ValueError: a fault of this rank's; it ends, and the others go on" in done.stderr
    assert len(same(tmp_path / "r", alone)) == 2


@pytest.mark.parametrize("ranks", [2, 4, thorough(3)])
def test_an_exception_that_every_rank_runs_into_ends_the_job(script, tmp_path, ranks):
    done = launched(script, tmp_path / "r", ranks, "shard 3")
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("\nValueError: a fault of this rank's\n") in (2, 3)
    assert not (tmp_path / "r" / "run.json").exists()


def test_a_rank_that_is_stopped_is_ended_and_the_others_go_on(script, alone, tmp_path):
    done = launched(script, tmp_path / "r", 3, "none", faults="step:20:1:stop")
    assert done.returncode == 0, done.stderr
    same(tmp_path / "r", alone)


def test_a_rank_is_replaced_in_the_pipeline(digits, tmp_path):
    flags = ("--epochs", 40)
    expected = trained(digits, tmp_path / "1", [sys.executable], 1, "--strategy", "single", *flags)[
        0
    ]
    found, recorded = trained(
        digits, tmp_path / "3", surviving(3), 3, "--replace", *flags, fault="step:20:0:kill"
    )
    assert found == expected
    assert [len(part["lost"]) for part in recorded["segments"] if "lost" in part] == [1]
