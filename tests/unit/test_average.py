"""average: the mean of snapshots, and which of them have one."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lockstep import state
from lockstep.average import mean_state, read_run
from lockstep.config import Run


@pytest.fixture
def save(tmp_path):
    """A function that writes state_dicts and returns their paths."""

    def write(*states):
        paths = [tmp_path / f"epoch-{i}.safetensors" for i in range(len(states))]
        for values, path in zip(states, paths, strict=True):
            state.save(values, path)
        return paths

    return write


def test_the_mean_is_that_in_float64_rounded_once(save):
    random = np.random.default_rng(0)
    values = random.standard_normal((7, 50)) * 10.0 ** random.uniform(-20, 20, (7, 50))
    values = values.astype(np.float32)
    (mean,) = mean_state(save(*({"w": torch.from_numpy(v)} for v in values))).values()
    total = np.zeros(50)
    for value in values:
        total += value
    assert mean.dtype == torch.float32
    assert np.array_equal(mean.numpy(), (total / 7).astype(np.float32))


@given(st.integers(1, 5))
def test_the_mean_of_one_weight_is_that_weight(count):
    value = torch.randn(20)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        state.save({"w": value, "n": torch.tensor(count)}, path)
        found = mean_state([path] * count)
    assert torch.equal(found["w"], value)
    assert found["n"] == count


def test_each_type_stays_and_counts_are_the_last_ones(save):
    states = [
        {
            "half": torch.tensor([1.0, 3.0 * i], dtype=torch.bfloat16),
            "double": torch.tensor([1e-300 * i], dtype=torch.float64),
            "count": torch.tensor(10 * i),
            "flag": torch.tensor([i == 2]),
        }
        for i in range(3)
    ]
    found = mean_state(save(*states))
    assert {name: value.dtype for name, value in found.items()} == {
        name: value.dtype for name, value in states[0].items()
    }
    assert found["half"].tolist() == [1.0, 3.0]
    assert found["double"].tolist() == [1e-300]
    assert found["count"] == 20
    assert found["flag"].tolist() == [True]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"a": torch.zeros(2)}, ["key 'b' is not in both"]),
        ({"a": torch.zeros(2), "b": torch.zeros(1), "c": torch.zeros(1)}, ["key 'c' is not in"]),
        ({"a": torch.zeros(3), "b": torch.zeros(1)}, ["key 'a'", "(3,)", "(2,)"]),
        ({"a": torch.zeros(2).double(), "b": torch.zeros(1)}, ["key 'a'", "float64", "float32"]),
        ({"a": torch.zeros(2), "b": torch.zeros(1).int()}, ["key 'b'", "int32", "float32"]),
    ],
)
def test_snapshots_that_differ_are_named_by_file_and_key(save, refused, other, words):
    first = {"a": torch.zeros(2), "b": torch.zeros(1)}
    paths = save(first, first, other)
    with refused(paths[2], paths[0], *words):
        mean_state(paths)


def test_a_damaged_snapshot_is_named(save, refused):
    paths = save({"a": torch.zeros(2)}, {"a": torch.zeros(2)})
    paths[1].write_bytes(paths[1].read_bytes()[:-1])
    with refused(paths[1], "train again"):
        mean_state(paths)


def test_a_run_is_read_from_its_record(tmp_path, refused):
    path = tmp_path / "train.json"
    run = Run(seed=5, clip=1.5)
    path.write_text(json.dumps({"configuration": run.model_dump(), "more": 1}))
    assert read_run(tmp_path) == run
    wrong = json.dumps({"configuration": {**run.model_dump(), "batch": 7}})
    for text in (None, "", "{", "{}", "[]", '{"configuration": {"epoch": 3}}', wrong):
        path.unlink() if text is None else path.write_text(text)
        with refused(path, "train again"):
            read_run(tmp_path)
