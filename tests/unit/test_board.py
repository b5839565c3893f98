"""TensorBoard's file says what history.csv says, whatever became of the training."""

import shutil
import signal
import sys

import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lockstep.pipeline.config import Run
from lockstep.pipeline.stages.reproduce import reproduce
from lockstep.pipeline.stages.train import train
from lockstep.testing import faults
from tests.conftest import mpirun, prepare_digits, run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("arithmetic_as_it_was")]

RUN = Run(
    model="linear",
    ranks=1,
    strategy="single",
    epochs=4,
    snapshots=2,
    oversubscribe=True,
    checkpoint_every="3 steps",
    tensorboard=True,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The digits with a validation part, in four shards."""
    return prepare_digits(tmp_path_factory.mktemp("data"), (4,), "--validation-fraction", 0.1)


@pytest.fixture
def go(data, tmp_path):
    """A function that trains in one folder, up to a fault."""

    def train_on(run=RUN, fault="", output=tmp_path / "run"):
        faults.WANTED = fault
        try:
            train(run, data, data / "4/shards.csv", output)
        except RuntimeError as error:
            assert str(error) == "a fault on demand"
        finally:
            faults.WANTED = ""
        return output

    return train_on


def scalars(folder):
    """Return what TensorBoard finds below a folder: the steps and values of each scalar."""
    found = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {
        name: {event.step: event.value for event in found.Scalars(name)}
        for name in found.Tags()["scalars"]
        # An epoch that is there twice has one key, but two events.
        if len(found.Scalars(name)) == len({event.step for event in found.Scalars(name)})
    }


def check(folder):
    """What is there is history.csv, to the precision of a float32."""
    history = pd.read_csv(folder / "history.csv").set_index("epoch")
    found = scalars(folder)
    assert found.keys() == set(history)
    for name in history:
        assert list(found[name]) == list(history.index), name
        assert list(found[name].values()) == pytest.approx(list(history[name]), rel=1e-6), name
    assert {"loss", "accuracy", "validation_loss", "lr", "images_per_second"} <= found.keys()


def test_the_scalars_are_the_columns_of_the_history(go):
    folder = go()
    check(folder)
    assert len(list((folder / "tensorboard").iterdir())) == 1
    # The axis of time is that of the training.
    events = EventAccumulator(str(folder / "tensorboard")).Reload().Scalars("loss")
    spent = pd.read_csv(folder / "history.csv")["seconds"]
    apart = events[-1].wall_time - events[0].wall_time
    assert apart == pytest.approx(spent.iloc[1:].sum(), abs=1e-4)


def test_it_may_be_looked_at_while_the_training_goes_on(go):
    folder = go(fault="step:25:0:raise")  # 9 steps an epoch
    assert not (folder / "history.csv").exists()
    assert list(scalars(folder)["loss"]) == [1, 2]


@pytest.mark.parametrize("step", [5, 18, 21, 35])
def test_no_epoch_is_lost_or_there_twice_after_an_interruption(go, step):
    folder = go(fault=f"step:{step}:0:raise")
    assert not (folder / "history.csv").exists()
    check(go())


def test_a_run_that_was_over_is_shown_whole_when_it_goes_on(go):
    folder = go()
    (folder / "train.json").unlink()
    shutil.rmtree(folder / "tensorboard")
    check(go())


def test_it_changes_no_bit_and_nothing_is_trained_again_for_it(go):
    folder = go(RUN.model_copy(update={"tensorboard": False}))
    assert not (folder / "tensorboard").exists()
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "train.json").unlink()
    # From the last checkpoint, with it: no step is left to do, or this one would fail.
    check(go(fault="step:0:0:raise"))
    assert (folder / "model.safetensors").read_bytes() == weights


def test_reproducing_a_run_writes_none(go, tmp_path):
    assert reproduce(go(), None, None, tmp_path / "again")
    assert (tmp_path / "again/train.json").exists()
    assert not (tmp_path / "again/tensorboard").exists()


@pytest.mark.parametrize("ranks", [1, 2])
def test_no_epoch_is_lost_or_there_twice_after_a_kill(data, tmp_path, ranks, monkeypatch):
    start = [sys.executable, "-m", "lockstep"] if ranks == 1 else ["lockstep", "launch", "-n", 2]
    words = [*start, "train", "--data", data, "--model=linear", "--epochs=4", f"--ranks={ranks}"]
    words += ["--partition", data / "4/shards.csv", "--output", tmp_path / "run", "--tensorboard"]
    words += ["--oversubscribe", "--checkpoint-every=3 steps"]
    with monkeypatch.context() as fault:
        fault.setenv("LOCKSTEP_FAULT", "step:25:0:kill")
        done = run(words, tmp_path)
    if ranks == 1:
        assert done.returncode == -signal.SIGKILL
        done = run(words, tmp_path)
    else:  # the other goes on by itself, and is the first from then on
        assert "goes on" in done.stderr or "go on" in done.stderr
    assert done.returncode == 0, done.stderr
    check(tmp_path / "run")


@pytest.mark.parametrize("ranks", [1, 2])
def test_without_the_package_it_is_one_line_before_anything_is_trained(
    data, tmp_path, ranks, monkeypatch
):
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['tensorboard'] = None\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    start = [sys.executable] if ranks == 1 else mpirun(2)
    words = [*start, "-m", "lockstep", "train", "--data", data, "--model=linear", "--epochs=1"]
    words += ["--partition", data / "4/shards.csv", "--output", tmp_path / "run", "--tensorboard"]
    words += [f"--ranks={ranks}", "--oversubscribe", "--snapshots=1"]
    done = run(words, tmp_path)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("lockstep train")]
    assert "tensorboard: is not installed; pip install tensorboard" in line
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
