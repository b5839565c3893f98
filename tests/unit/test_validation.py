"""Validation while training, and classes of very different sizes, from arrays to the report."""

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_digits

from lockstep.pipeline import report
from lockstep.pipeline.config import Dataset, Run
from lockstep.pipeline.data.manifest import read_manifest
from lockstep.pipeline.stages.average import average
from lockstep.pipeline.stages.evaluate import evaluate
from lockstep.pipeline.stages.partition import partition
from lockstep.pipeline.stages.prepare import prepare
from lockstep.pipeline.stages.summarize import summarize
from lockstep.pipeline.stages.train import train
from lockstep.pipeline.tasks.validation import best_of, is_over

pytestmark = pytest.mark.usefixtures("arithmetic_as_it_was")

ALONE = {"ranks": 1, "strategy": "single", "oversubscribe": True}


def rows(*losses):
    return [{"epoch": at, "validation_loss": loss} for at, loss in enumerate(losses, start=1)]


@pytest.mark.parametrize(
    ("losses", "patience", "best", "over"),
    [
        ((), 1, None, False),
        ((3,), 1, 1, False),
        ((3, 3), 1, 1, True),
        ((3, 3), 2, 1, False),
        ((3, 3), None, 1, False),
        ((3, 2, 2.5, 2), 2, 2, True),
        ((3, 2, 2.5, 1.9), 2, 4, False),
    ],
)
def test_a_run_is_over_when_the_loss_was_not_lower_for_so_many_epochs(losses, patience, best, over):
    history = rows(*losses)
    found = best_of(history)
    assert (found and found["epoch"]) == best
    assert is_over(history, patience) == over


def test_without_a_validation_part_nothing_is_best():
    assert best_of([{"epoch": 1, "loss": 0.5}]) is None
    assert not is_over([{"epoch": 1, "loss": 0.5}], 1)


@pytest.mark.parametrize("wanted", [{"patience": 3}, {"keep": "best"}])
def test_what_needs_a_validation_part_is_refused_without_one(wanted, digits, tmp_path, refused):
    partition(digits, "iid", 4, 0, 0.5, tmp_path)
    (key, value), run = *wanted.items(), Run(epochs=2, **ALONE, **wanted)
    with refused(f"{key}: {value} needs a validation part", digits, "or leave"):
        train(run, digits, tmp_path / "shards.csv", tmp_path / "run")


@pytest.fixture(scope="module")
def skewed(tmp_path_factory):
    """The folder of a prepared dataset in which 95 % of the training images are a 3, and the others
    an 8; the test set has as many of each."""
    folder = tmp_path_factory.mktemp("skewed")
    scans = load_digits()
    images = np.round(scans.images * (255 / 16)).astype(np.uint8)
    three, eight = (images[scans.target == digit] for digit in (3, 8))
    arrays = {
        "images": np.concatenate([three[:114], eight[:6]]),
        "labels": np.repeat([0, 1], [114, 6]),
    }
    arrays |= {"test_images": np.concatenate([three[114:174], eight[114:174]])}
    arrays |= {"test_labels": np.repeat([0, 1], 60)}
    np.savez(folder / "own.npz", **arrays)
    data = folder / "data"
    prepare(Dataset(name="npz", path=str(folder / "own.npz")), data)
    partition(data, "stratified", 2, 0, 0.5, data / "shards")
    return data


def learn(data, output, **values):
    """Train and evaluate a run, and return its metrics."""
    usual = {"model": "linear", "shards": 2, "batch": 40, "epochs": 12, "lr": 0.003}
    run = Run(**ALONE, **usual, **values)
    train(run, data, data / "shards" / "shards.csv", output)
    average(output, data, 1)
    return evaluate(output, data, 1, 1)


def test_balanced_weights_make_a_rare_class_count(skewed, tmp_path):
    assert read_manifest(skewed).counts == [114, 6]
    runs = {
        "plain": {},
        "balanced": {"class_weights": "balanced"},
        "given": {"class_weights": "1,19"},
    }
    found = {name: learn(skewed, tmp_path / name, **how) for name, how in runs.items()}
    recall = {name: of["last"]["per_class"]["1"]["recall"] for name, of in found.items()}
    assert recall["plain"] == 0 < 0.5 < recall["balanced"]
    assert found["balanced"]["last"]["balanced_accuracy"] > 0.75
    # Weights that are 19 times the balanced ones' have the same mean, but for rounding.
    assert found["given"]["last"]["loss"] == pytest.approx(
        found["balanced"]["last"]["loss"], rel=1e-3
    )
    assert found["plain"]["validation"] is None
    table = summarize([tmp_path / name for name in runs], tmp_path / "summary.csv")
    assert list(table["balanced_accuracy_last"]) == [
        of["last"]["balanced_accuracy"] for of in found.values()
    ]
    assert set(table["majority"]) == {0.5}
    report.draw_run(tmp_path / "plain", skewed / "shards/summary.csv", tmp_path / "figures")
    assert "balanced" in (tmp_path / "figures/confusion.svg").read_text()

    (line,) = report.runs.read_baseline(pd.read_csv(tmp_path / "summary.csv"))
    assert line.startswith("<b>plain is no better than the largest class")
    assert "50.00%" in line
