"""pipeline and hybrid give the bits of one process, wherever the model is cut."""

import json
import sys

import pytest

from tests.conftest import REPOSITORY, mpirun, run
from tests.mpi.runs import train

GPIPE = ("--strategy", "pipeline", "--pipeline-schedule", "gpipe")
ONE_F_ONE_B = ("--strategy", "pipeline", "--pipeline-schedule", "1f1b")


@pytest.mark.parametrize(
    ("name", "ranks", "how"),
    [
        ("busy", 1, GPIPE),
        *(("cnn", 4, ONE_F_ONE_B), ("busy", 2, ONE_F_ONE_B), ("busy", 4, GPIPE)),
        *(("resnet", 2, GPIPE), ("blocks", 4, ONE_F_ONE_B), ("bfloat16", 2, ONE_F_ONE_B)),
        ("six shards", 4, ("--strategy", "hybrid", "--stages", 2)),
        ("six shards", 6, ("--strategy", "hybrid", "--stages", 2, *GPIPE[2:])),
    ],
)
def test_the_bits_are_those_of_one_process(name, ranks, how, digits, single, tmp_path):
    assert train(digits, tmp_path, name, ranks, *how) == single(name)


def test_the_bits_are_the_same_over_gloo(digits, single, tmp_path):
    assert train(digits, tmp_path, "busy", 3, *ONE_F_ONE_B, "--backend", "gloo") == single("busy")


def test_a_saved_model_is_evaluated_as_any_other(digits, single, tmp_path):
    assert train(digits, tmp_path, "busy", 3, *GPIPE) == single("busy")
    for stage in ("average", "evaluate"):
        words = ["-m", "lockstep", stage, "--results", tmp_path, "--data", digits]
        words += ["--ranks", 1] if stage == "evaluate" else []
        done = run([sys.executable, *words], REPOSITORY)
        assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["last"]["accuracy"] > 0.2


def test_a_model_with_too_few_blocks_is_refused(digits, tmp_path):
    words = ["train", "--data", digits, "--partition", digits / "4" / "shards.csv"]
    words += ["--output", tmp_path / "out", "--model", "linear", "--ranks", 2, "--oversubscribe"]
    done = run([*mpirun(2), "-m", "lockstep", *words, *GPIPE], REPOSITORY)
    assert done.returncode == 2, done.stderr
    assert "1 blocks with parameters to train, too few for 2 stages" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "train.json").exists()
