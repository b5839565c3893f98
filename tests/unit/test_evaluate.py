"""evaluate: the numbers in metrics.json, from labels and predictions made by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.pipeline.tasks.classification import measure


def test_metrics_are_those_counted_by_hand():
    labels = np.array([0, 0, 0, 1, 1, 2])
    predicted = np.array([0, 0, 1, 1, 2, 2])
    losses = np.array([0.5, 0.25, 1, 0.25, 2, 2], np.float32)
    metrics, confusion = measure(labels, predicted, losses, ["cat", "dog", "eel"])
    assert metrics == {
        "accuracy": 4 / 6,
        "correct": 4,
        "loss": 1.0,
        "per_class": {
            "cat": {"samples": 3, "correct": 2, "accuracy": 2 / 3},
            "dog": {"samples": 2, "correct": 1, "accuracy": 0.5},
            "eel": {"samples": 1, "correct": 1, "accuracy": 1.0},
        },
    }
    counts = {(row.label, row.predicted): row.samples for row in confusion.itertuples()}
    assert len(counts) == 9
    assert {pair: n for pair, n in counts.items() if n} == {
        ("cat", "cat"): 2,
        ("cat", "dog"): 1,
        ("dog", "dog"): 1,
        ("dog", "eel"): 1,
        ("eel", "eel"): 1,
    }


def test_the_loss_is_summed_in_float64():
    losses = np.array([1e8, *[1.0] * 999], np.float32)
    metrics, _ = measure(np.arange(1000) % 2, np.zeros(1000, int), losses, ["a", "b"])
    assert metrics["loss"] == (1e8 + 999) / 1000


def test_a_class_that_is_never_predicted_has_its_row_and_column():
    metrics, confusion = measure(np.array([0, 1]), np.array([0, 0]), np.ones(2), ["a", "b"])
    assert metrics["per_class"]["b"] == {"samples": 1, "correct": 0, "accuracy": 0.0}
    assert confusion["samples"].tolist() == [1, 0, 1, 0]


@given(st.data(), st.integers(2, 5), st.integers(1, 60))
def test_counts_agree_with_each_other(data, classes, count):
    index = st.integers(0, classes - 1)
    some = st.lists(index, min_size=count, max_size=count)
    labels = np.concatenate([np.arange(classes), data.draw(some)])  # each class is there
    predicted = np.concatenate([np.arange(classes), data.draw(some)])
    names = [f"class {i}" for i in range(classes)]
    metrics, confusion = measure(labels, predicted, np.ones(len(labels)), names)
    assert metrics["accuracy"] == pytest.approx((labels == predicted).mean())
    assert confusion["samples"].sum() == len(labels)
    on_diagonal = confusion[confusion["label"] == confusion["predicted"]]
    assert on_diagonal["samples"].sum() == metrics["correct"]
    of_classes = metrics["per_class"].values()
    assert sum(c["samples"] for c in of_classes) == len(labels)
    assert sum(c["correct"] for c in of_classes) == metrics["correct"]
