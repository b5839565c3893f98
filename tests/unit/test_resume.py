"""A run that stops and goes on, in this one process: the bits, and what it goes on from."""

import dataclasses
import functools
import itertools
import shutil
import sys
import types

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep import provenance
from lockstep.checkpoint.store import fingerprint
from lockstep.distributed import signals as interrupt
from lockstep.distributed.signals import LOOK_EVERY, Agreement
from lockstep.distributed.world import World
from lockstep.errors import Interrupted
from lockstep.pipeline import identity
from lockstep.pipeline.config import Run
from lockstep.pipeline.data.manifest import read_manifest
from lockstep.pipeline.stages.partition import partition
from lockstep.pipeline.stages.reproduce import reproduce
from lockstep.pipeline.stages.train import train
from lockstep.testing import faults
from tests.damage import flipped

pytestmark = pytest.mark.usefixtures("arithmetic_as_it_was")

# Two epochs of 11 steps: half a second.
RUN = Run(
    model="linear",
    ranks=1,
    strategy="single",
    epochs=2,
    snapshots=2,
    oversubscribe=True,
    checkpoint_every="3 steps",
)
HASHES = [f"{part}_sha256" for part in ("parameters", "buffers", "optimizer", "history")]
HASHES += ["snapshots_sha256", "model_sha256"]


@pytest.fixture(scope="module")
def go(digits, tmp_path_factory):
    """A function that trains a run in a folder, up to a fault; it returns the hashes, or None."""
    shards = tmp_path_factory.mktemp("shards")
    partition(digits, RUN.scheme, RUN.shards, RUN.seed, RUN.alpha, shards)

    def train_on(output, run=RUN, fault=""):
        faults.WANTED = fault
        try:
            record = train(run, digits, shards / "shards.csv", output)
        except (Interrupted, RuntimeError) as stopped:
            assert isinstance(stopped, Interrupted) or str(stopped) == "a fault on demand"
            return None
        finally:
            faults.WANTED = ""
            assert not dist.is_initialized()
        return {name: getattr(record, name) for name in HASHES}

    return train_on


@pytest.fixture(scope="module")
def whole(go, tmp_path_factory):
    """The hashes of the run that never stopped."""
    return go(tmp_path_factory.mktemp("whole"))


def checkpoints(output):
    return sorted(output.glob("checkpoints/*/step-*"))


@pytest.mark.slow
@settings(max_examples=5)
@given(st.lists(st.tuples(st.integers(0, 6), st.sampled_from(["usr1", "raise"])), max_size=10))
def test_a_walk_of_stops_ends_with_the_same_bits(go, whole, tmp_path_factory, stops):
    output = tmp_path_factory.mktemp("walk")
    for ahead, action in stops:
        newest = max((int(path.name[5:]) for path in checkpoints(output)), default=0)
        found = go(output, fault=f"step:{newest + ahead}:0:{action}")
        if found is not None:  # it was over
            assert found == whole
    assert go(output) == whole
    shutil.rmtree(output)


def test_a_run_that_is_over_is_the_same_once_more(go, whole, tmp_path, capsys):
    go(tmp_path)
    before = {path: path.stat().st_ino for path in checkpoints(tmp_path)}
    assert go(tmp_path) == whole
    assert "going on after step 22" in capsys.readouterr().err
    assert {path: path.stat().st_ino for path in checkpoints(tmp_path)} == before


@pytest.mark.slow
def test_weights_that_are_tied_or_frozen_or_of_no_dimension_go_on(
    go, tmp_path, repository, monkeypatch
):
    monkeypatch.chdir(repository)
    run = RUN.model_copy(update={"model": "tests.unit.little:Tied", "clip": 0.5})
    expected = go(tmp_path / "whole", run)
    assert go(tmp_path / "part", run, "step:14:0:raise") is None
    assert go(tmp_path / "part", run) == expected


@pytest.mark.parametrize("damaged", [1, 2])
def test_a_damaged_checkpoint_is_named_and_costs_time_alone(damaged, go, whole, tmp_path, capsys):
    assert go(tmp_path, fault="step:14:0:raise") is None
    found = checkpoints(tmp_path)
    assert [path.name for path in found] == ["step-00000009", "step-00000012"]
    for path in found[-damaged:]:
        with flipped(path / "optimizer.safetensors", -1):
            content = (path / "optimizer.safetensors").read_bytes()
        (path / "optimizer.safetensors").write_bytes(content)
    capsys.readouterr()
    assert go(tmp_path) == whole
    said = capsys.readouterr().err
    for path in found[-damaged:]:
        assert f"{path}: damaged, and not used: " in said
    assert ("going on after step 9" in said) == (damaged == 1)
    assert ("going on" in said) == (damaged == 1)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000021", "step-00000022"]


def test_a_folder_that_is_removed_under_the_run_costs_that_alone(go, tmp_path):
    # It goes while the run may write to it, by a fault of the test's own.
    def remove():
        (tmp_path / "run").rename(tmp_path / "gone")

    faults.ACTIONS["remove"] = remove
    try:
        run = RUN.model_copy(update={"snapshots": 1})
        expected = go(tmp_path / "whole", run)
        assert go(tmp_path / "run", run, "step:8:0:remove") == expected
    finally:
        del faults.ACTIONS["remove"]


# Whose a checkpoint is.

PRETRAINED = """
import torch

def make(shape, classes):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(28 * 28, classes))
    with open("weight") as file:
        torch.nn.init.constant_(model[1].weight, float(file.read()))
    return model
"""


@pytest.mark.slow
def test_other_pretrained_weights_are_another_run(go, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / "pretrained.py").write_text(PRETRAINED)
    run = RUN.model_copy(update={"model": "pretrained:make"})
    found = {}
    for weight in ("0.5", "-0.5"):
        (tmp_path / "weight").write_text(weight)
        found[weight] = go(tmp_path / "run", run)
    said = capsys.readouterr().err
    assert "checkpoints of another run, not used: initial weights was " in said
    assert "going on" not in said
    assert found["0.5"] != found["-0.5"] == go(tmp_path / "anew", run)
    again = functools.partial(reproduce, tmp_path / "run", None, None, None)
    assert again()
    (tmp_path / "weight").write_text("0.5")
    assert not again()
    assert "not as it was: initial weights: " in capsys.readouterr().out


@pytest.fixture(scope="module")
def name_of(digits, tmp_path_factory):
    """A function that returns the fingerprint of a run's checkpoints, with other values."""
    table = tmp_path_factory.mktemp("table") / "shards.csv"
    manifest = read_manifest(digits)

    code = functools.cache(provenance.code_of_training)

    def of(backend="gloo", rows="", initial="0", of_data=None, **values):
        table.write_text(f"sample,label,shard\n{rows}")
        some = dataclasses.replace(manifest, **of_data or {})
        run = Run(**RUN.model_dump() | {"strategy": "sync_sgd"} | values)
        inputs = identity.inputs(run, some, table)
        return fingerprint(identity.about(run, inputs, initial, torch.device("cpu"), backend))

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(provenance, "code_of_training", code)  # once for a model is enough
        yield of


@pytest.mark.parametrize(
    "strategy",
    [{}, {"strategy": "local_sgd"}, {"strategy": "pipeline"}, {"strategy": "fsdp"}],
    ids=str,
)
def test_where_and_how_it_runs_makes_no_other_run(strategy, name_of):
    others = [
        {"ranks": 2},
        {"ranks": 4, "backend": "mpi4py"},
        {"oversubscribe": False, "init_method": "env://"},
        {"checkpoint_every": "1 h", "checkpoint_keep": 7, "timeout": 5.0},
        {"pipeline_schedule": "gpipe"},
    ]
    assert len({name_of(**strategy, **other) for other in ({}, *others)}) == 1


@pytest.mark.parametrize("strategy", [{"strategy": "ddp"}, {"reduction": "fast"}], ids=str)
def test_where_the_bits_depend_on_the_ranks_so_does_the_run(strategy, name_of):
    others = [{}, {"ranks": 2}, {"backend": "mpi4py"}]
    assert len({name_of(**strategy, **other) for other in others}) == 3
    same = [{}, {"oversubscribe": False}, {"checkpoint_every": "1 h"}]
    assert len({name_of(**strategy, **other) for other in same}) == 1


def test_what_changes_the_bits_makes_another_run(name_of, monkeypatch):
    others = [
        {},
        {"seed": 1},
        {"lr": 0.02},
        {"epochs": 3},
        {"threads": 2},
        {"reduction": "fast"},
        {"strategy": "local_sgd"},
        {"strategy": "local_sgd", "sync_every": 0},
        {"model": "cnn"},
        {"rows": "0,0,0\n"},
        {"of_data": {"sha256": {"train/images.npy": "0" * 64}}},
        {"of_data": {"mean": [0.5]}},
        {"initial": "1"},
    ]
    names = {name_of(**other) for other in others}
    assert len(names) == len(others)
    with monkeypatch.context() as user:
        user.setenv(provenance.CAPS[0], "default")
        assert name_of() not in names
    versions = provenance.versions()
    for name in ("torchvision", "numpy"):
        monkeypatch.setattr(provenance, "versions", lambda name=name: versions | {name: "0.1"})
        assert name_of() not in names
        monkeypatch.setattr(provenance, "versions", lambda: versions)
    assert name_of() in names
    monkeypatch.setattr(provenance, "code_of_training", lambda *_: {"train.py": "other"})
    assert name_of() not in names


# When the ranks look whether they are to stop. One rank, by a clock that is told.


class Clock:
    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now


def looks(monkeypatch, seconds, told=None):
    """Take steps of so many seconds; return after which ones there was a look, and which one said
    that there was a signal, which came in step `told`."""
    clock, signalled, found, said = Clock(), types.SimpleNamespace(signal=0), [], []
    monkeypatch.setattr(interrupt, "time", clock)
    agreement = Agreement(
        World(0, 1, 0, 1, "python"), signalled, lambda: found.append(step) is not None
    )
    for step, duration in enumerate(seconds, start=1):
        clock.now += duration
        signalled.signal = 10 if told is not None and step >= told else 0
        if agreement.after(step)[0]:
            said.append(step)
    return found, said


DURATIONS = st.lists(st.floats(1e-5, 2.0), min_size=1, max_size=300)


@given(DURATIONS, st.integers(1, 300))
def test_ranks_look_at_once_and_then_never_four_times_later_than_before(durations, told):
    with pytest.MonkeyPatch.context() as monkeypatch:
        found, said = looks(monkeypatch, durations, told)
    assert found[0] == 1
    gaps = [later - sooner for sooner, later in itertools.pairwise(found)]
    assert all(1 <= gap <= 4 * before for before, gap in zip([1, *gaps], gaps, strict=False))
    assert said == [step for step in found if step >= told]


@settings(max_examples=25)
@given(st.floats(1e-3, 3.0))
def test_ranks_look_about_as_often_as_they_should(duration):
    with pytest.MonkeyPatch.context() as monkeypatch:
        found, _ = looks(monkeypatch, [duration] * 3000)
    gap = found[-1] - found[-2]
    assert gap == pytest.approx(max(1, LOOK_EVERY / duration), rel=0.01, abs=0.5 + 1e-6)


def test_data_that_memory_cannot_hold_are_said_to_want_a_window(go, tmp_path, monkeypatch, capsys):
    go(tmp_path / "before")
    assert "shuffle_window" not in capsys.readouterr().err
    monkeypatch.setattr("lockstep.pipeline.stages.train._memory", lambda: 0)
    go(tmp_path / "any")
    assert "shuffle_window: 25600, say, would read them in larger blocks" in capsys.readouterr().err
    go(tmp_path / "window", RUN.model_copy(update={"shuffle_window": 256}))
    assert "shuffle_window" not in capsys.readouterr().err
