"""Ranks that die in a running job: those that are left go on, to the bits of one process."""

import json
import sys

import pandas as pd
import pytest

from lockstep import progress
from tests.conftest import prepare_digits, run, thorough
from tests.mpi.survivors import STEPS, surviving, train, trained

OWN = """
import sys, torch, lockstep
from torch import nn
from torch.nn.functional import cross_entropy

def net():
    return nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.Dropout(0.2), nn.Linear(32, 3))

with lockstep.init(shards=8, seed=1) as session:
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(512, 8, generator=draw), torch.randint(0, 3, (512,), generator=draw)
    model = session.build(net)
    optimizer = torch.optim.AdamW(model.parameters())
    run = session.run(
        model, optimizer, folder=sys.argv[1], checkpoint_every="5 steps", configuration={}
    )
    for step in run.steps(512, batch=64, epochs=5):
        for shard in step:
            loss = cross_entropy(model(x[shard.ids]), y[shard.ids], reduction="sum")
            shard.backward(loss, items=len(shard.ids))
        optimizer.step()
"""


@pytest.fixture(scope="module")
def alone(digits, tmp_path_factory):
    output = tmp_path_factory.mktemp("alone") / "run"
    return trained(digits, output, [sys.executable], 1, "--strategy", "single")[0]


FAULTS = [
    (2, "step:20:0:kill"),  # the one that writes
    (3, "step:21:1:kill-later,step:23:0:kill"),  # at the end of an epoch
    thorough(4, "step:7:3:kill,step:7:0:kill-later,step:22:2:kill-later"),
    (2, "snapshot:0:0:kill"),  # before an epoch's weights are written, which no other waits for
    thorough(2, "written:20:0:kill"),  # inside of a checkpoint
    thorough(3, "step:43:2:kill-later"),  # in the last step, or just after it
]


@pytest.mark.parametrize(("ranks", "faults"), FAULTS)
def test_those_that_are_left_go_on_to_the_same_bits(digits, alone, tmp_path, ranks, faults):
    found, record = trained(digits, tmp_path / "r", surviving(ranks), ranks, fault=faults)
    assert found == alone
    segments = record["segments"]
    assert segments[0]["first_step"] == 0
    assert segments[-1]["last_step"] == STEPS
    lost = [one for part in segments[1:] for one in part["lost"]]
    assert len(lost) == len(faults.split(",")), segments
    assert all(part["mended_in"] < 5 for part in segments[1:])
    # Whoever is first tells where the training is; what the one before it told is not lost.
    told = progress.read(tmp_path / "r")
    history = pd.read_csv(tmp_path / "r/history.csv")
    assert [row["loss"] for row in told.epochs] == pytest.approx(list(history["loss"]))
    now = [told.now[name] for name in ("state", "step", "ranks", "of_ranks")]
    assert now == ["done", STEPS, ranks - len(lost), ranks]


@pytest.mark.thorough
@pytest.mark.parametrize("faults", ["validation:1:0:kill", "validation:2:2:kill-later"])
def test_one_that_dies_in_validation_is_survived_with_the_same_best_epoch(tmp_path, faults):
    data = prepare_digits(tmp_path, (4,), "--validation-fraction", 0.2)
    flags = ("--keep", "best")
    single = ("--strategy", "single", *flags)
    alone, _ = trained(data, tmp_path / "1", [sys.executable], 1, *single)
    found, record = trained(data, tmp_path / "3", surviving(3), 3, *flags, fault=faults)
    assert found == alone
    assert len(record["segments"]) == 2


def test_a_rank_that_hangs_ends_itself_and_the_others_go_on(digits, alone, tmp_path):
    flags = ("--timeout", 3)
    fault = "step:20:0:hang"
    found, record = trained(digits, tmp_path / "r", surviving(3), 3, *flags, fault=fault)
    assert found == alone
    (lost,) = record["segments"][1]["lost"]
    assert lost.startswith("rank 0 (")


@pytest.mark.parametrize(
    ("ranks", "faults"),
    [
        (3, "step:4:0:kill,shard:11:2:kill"),
        thorough(4, "step:9:1:kill-later,shard:10:3:kill,step:33:0:kill-later"),
    ],
)
def test_a_loop_of_ones_own_goes_on_without_knowing(tmp_path, ranks, faults):
    (tmp_path / "own.py").write_text(OWN)
    assert run([sys.executable, "own.py", "alone"], tmp_path).returncode == 0
    words = ["env", f"LOCKSTEP_FAULT={faults}", *surviving(ranks), "own.py", "many"]
    done = run(words, tmp_path)
    assert done.returncode == 0, done.stderr
    one, many = (json.loads((tmp_path / n / "run.json").read_text()) for n in ("alone", "many"))
    for name in ("model_sha256", "optimizer_sha256", "history", "steps"):
        assert one[name] == many[name], name
    assert sum(len(part.get("lost", [])) for part in many["segments"]) == len(faults.split(","))
    told = progress.read(tmp_path / "many")
    assert [told.now[n] for n in ("state", "step")] == ["done", many["steps"]]
    assert told.now["ranks"] == ranks - len(faults.split(","))
    assert [row["loss"] for row in told.epochs] == [row["loss"] for row in many["history"]]


@pytest.mark.parametrize(("ranks", "dies"), [(2, 0), thorough(2, 1), thorough(4, 0)])
def test_a_death_that_ends_the_job_is_seen_by_its_status(digits, tmp_path, ranks, dies):
    flags = "--reduction", "fast"
    fault = f"step:20:{dies}:kill"
    done = train(digits, tmp_path / "r", surviving(ranks), ranks, *flags, fault=fault)
    assert done.returncode == 1, done.stderr
    assert "has died" in done.stderr
    assert not (tmp_path / "r/train.json").exists()
