"""evaluate: the numbers in metrics.json, from labels and predictions made by hand."""

import io

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, f1_score, recall_score

from lockstep.pipeline.config import Run
from lockstep.pipeline.tasks.classification import Classification, confusion, measure


def test_metrics_are_those_counted_by_hand():
    labels = np.array([0, 0, 0, 1, 1, 2])
    predicted = np.array([0, 0, 1, 1, 2, 2])
    losses = np.array([0.5, 0.25, 1, 0.25, 2, 2], np.float32)
    assert measure(labels, predicted, losses, ["cat", "dog", "eel"]) == {
        "accuracy": 4 / 6,
        "balanced_accuracy": pytest.approx((2 / 3 + 1 / 2 + 1) / 3),
        "macro_f1": pytest.approx((4 / 5 + 1 / 2 + 2 / 3) / 3),
        "majority": 3 / 6,
        "correct": 4,
        "loss": 1.0,
        "per_class": {
            "cat": {"samples": 3, "correct": 2, "precision": 1, "recall": 2 / 3, "f1": 4 / 5},
            "dog": {"samples": 2, "correct": 1, "precision": 0.5, "recall": 0.5, "f1": 0.5},
            "eel": {"samples": 1, "correct": 1, "precision": 0.5, "recall": 1, "f1": 2 / 3},
        },
    }
    table = confusion(labels, predicted, ["cat", "dog", "eel"])
    counts = {(row.label, row.predicted): row.samples for row in table.itertuples()}
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
    metrics = measure(np.arange(1000) % 2, np.zeros(1000, int), losses, ["a", "b"])
    assert metrics["loss"] == (1e8 + 999) / 1000


def test_a_class_that_is_never_predicted_has_its_row_and_column():
    labels, predicted = np.array([0, 1]), np.array([0, 0])
    of_class = measure(labels, predicted, np.ones(2), ["a", "b"])["per_class"]["b"]
    assert of_class == {"samples": 1, "correct": 0, "precision": 0, "recall": 0, "f1": 0}
    assert confusion(labels, predicted, ["a", "b"])["samples"].tolist() == [1, 0, 1, 0]


@given(st.data(), st.integers(2, 5), st.integers(1, 60))
def test_counts_agree_with_each_other_and_shares_with_scikit_learn(data, classes, count):
    index = st.integers(0, classes - 1)
    some = st.lists(index, min_size=count, max_size=count)
    labels = np.concatenate([np.arange(classes), data.draw(some)])  # each class is there
    predicted = np.concatenate([np.arange(classes), data.draw(some)])
    names = [f"class {i}" for i in range(classes)]
    metrics, table = (
        measure(labels, predicted, np.ones(len(labels)), names),
        confusion(labels, predicted, names),
    )
    assert metrics["accuracy"] == pytest.approx((labels == predicted).mean())
    assert metrics["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert metrics["macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert table["samples"].sum() == len(labels)
    on_diagonal = table[table["label"] == table["predicted"]]
    assert on_diagonal["samples"].sum() == metrics["correct"]
    of_classes = metrics["per_class"].values()
    assert sum(c["samples"] for c in of_classes) == len(labels)
    assert sum(c["correct"] for c in of_classes) == metrics["correct"]
    recall = recall_score(labels, predicted, average=None)
    assert [c["recall"] for c in of_classes] == pytest.approx(recall.tolist())


def test_predictions_are_read_by_a_person():
    names = ["NA", "red, or so"]
    task = Classification(Run(), np.asarray, (1, 1, 1), torch.device("cpu"), names)
    outputs = torch.tensor([[0.0, 0.0], [2.0, -1.0], [-9.0, 9.0]])
    labels = torch.tensor([1, 0, 1])
    last = task.predict(outputs, labels) | task.detail(outputs)
    found = {"last": last, "averaged": task.predict(-outputs, labels)}
    table = task.tables(labels.numpy(), found, ["b.png", "a.png", "c.png"])["predictions"]
    text = table.to_csv(index=False)
    assert text.splitlines() == [
        'sample,file,label,last,averaged,p_NA,"p_red, or so"',
        '0,b.png,"red, or so",NA,NA,0.5,0.5',
        '1,a.png,NA,NA,"red, or so",0.952574,0.047426',
        '2,c.png,"red, or so","red, or so",NA,0.0,1.0',
    ]
    again = pd.read_csv(io.StringIO(text), keep_default_na=False)
    assert list(again["last"]) == ["NA", "NA", "red, or so"]
    assert "file" not in task.tables(labels.numpy(), found)["predictions"]
    many = torch.zeros(1, 1001)
    assert task.detail(many) == {}
