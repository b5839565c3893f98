"""Ranks that do not share the shards evenly: 8 shards on 3 ranks."""

import json
import sys

import pytest

from lockstep import tensors
from tests.conftest import REPOSITORY, mpirun, run

PROGRAM = REPOSITORY / "tests" / "mpi" / "programs" / "uneven.py"
# In `make test`, the library's examples have 8 shards on 3 ranks.
pytestmark = pytest.mark.thorough

SAME = ["model_sha256", "optimizer_sha256", "history_sha256"]


@pytest.fixture(scope="module")
def go(digits):
    """Return a function that trains cases on some ranks, killed before a step, in a folder."""

    def train(ranks, folder, stop, *cases):
        launcher = mpirun(ranks) if ranks > 1 else [sys.executable]
        done = run([*launcher, PROGRAM, digits, folder, stop, *cases], REPOSITORY)
        assert (done.returncode == 0) == (not stop), done.stderr

    return train


def test_the_bits_and_the_history_are_those_of_one_rank_wherever_a_run_goes_on(go, tmp_path):
    cases = ["tree", "local_sgd"]
    go(1, tmp_path / "one", 0, *cases)
    for case in cases:
        go(3, tmp_path / "three", 29, case)  # in the middle of the second epoch
    assert not list(tmp_path.glob("three/*/train.json"))
    go(2, tmp_path / "three", 0, *cases)
    for case in cases:
        one, three = (
            json.loads((tmp_path / where / case / "train.json").read_text())
            for where in ("one", "three")
        )
        assert [part["last_step"] for part in three["segments"]][1:] == [one["steps"]]
        assert {name: three[name] for name in SAME} == {name: one[name] for name in SAME}


def test_sums_of_other_orders_weigh_each_sample_alike(go, tmp_path):
    go(1, tmp_path / "one", 0, "plain")
    go(3, tmp_path / "three", 0, "plain", "fast", "ddp")
    expected = tensors.read(tmp_path / "one" / "plain" / "model.safetensors")
    for case in ("plain", "fast", "ddp"):
        found = tensors.read(tmp_path / "three" / case / "model.safetensors")
        for name, value in expected.items():
            assert value.allclose(found[name], rtol=1e-3, atol=1e-5), (case, name)
