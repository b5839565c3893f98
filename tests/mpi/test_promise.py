"""The promise: the same bits at any number of ranks, through real mpirun.

`test_matrix` varies all that it holds for; here are other launchers and sums.
"""

import json
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import REPOSITORY, mpirun, run, thorough
from tests.crew import run_shared

# What a run takes, beside the number of ranks. Its result must depend on nothing else.
RUNS = {
    "cnn": ["--shards", 4, "--batch", 64, "--shift", 2],
    "busy": [
        *("--model", "tests.mpi.models:busy", "--shards", 4, "--batch", 64, "--shift", 2, "--flip"),
        *("--optimizer", "sgd", "--lr", 0.1, "--clip", 1.0, "--label-smoothing", 0.1),
    ],
    "six shards": [
        *("--model", "tests.mpi.models:busy", "--shards", 6, "--batch", 96),
        *("--weight-decay", 0.01, "--schedule", "cosine", "--warmup", 0.5),
    ],
    "bfloat16": ["--shards", 4, "--batch", 64, "--precision", "bfloat16"],
}
TIMES = ["images_per_second", "seconds"]
TIMES += [f"{part}_seconds" for part in ("input", "compute", "communication", "idle")]


def train(data: Path, output: Path, name: str, launcher: list, ranks: int, *flags) -> dict:
    shards = RUNS[name][RUNS[name].index("--shards") + 1]
    words = ["train", "--data", data, "--partition", data / str(shards) / "shards.csv"]
    words += ["--output", output, "--epochs", 2, "--snapshots", 2, "--oversubscribe"]
    words += [*RUNS[name], "--ranks", ranks, *flags]
    start = run if {"torch.distributed.run", "env"} & {*map(str, launcher)} else run_shared
    done = start([*launcher, "-m", "lockstep", *words], REPOSITORY)
    assert done.returncode == 0, done.stderr
    return json.loads((output / "train.json").read_text())


def bits(output: Path, record: dict) -> dict:
    """Return all of a result that must not depend on how it was computed."""
    history = pd.read_csv(output / "history.csv").drop(columns=TIMES)
    return {
        "model": record["model_sha256"],
        "optimizer": record["optimizer_sha256"],
        "history": history.to_csv(index=False),
        "snapshots": [p.read_bytes() for p in sorted((output / "snapshots").iterdir())],
    }


@pytest.fixture(scope="module")
def reference(digits, tmp_path_factory):
    """Return a function that trains a run by the strategy `single`, once, and gives its bits."""
    known = {}

    def of(name: str) -> dict:
        if name not in known:
            output = tmp_path_factory.mktemp("single")
            python = [sys.executable]
            known[name] = bits(
                output, train(digits, output, name, python, 1, "--strategy", "single")
            )
        return known[name]

    return of


@pytest.mark.parametrize(
    ("name", "ranks"),
    [("busy", 4), ("bfloat16", 2)],
)
def test_the_bits_are_those_of_one_process(name, ranks, digits, reference, tmp_path):
    assert bits(tmp_path, train(digits, tmp_path, name, mpirun(ranks), ranks)) == reference(name)


def test_the_bytes_sent_are_those_of_a_ring_or_of_one_message_to_all(digits, reference, tmp_path):
    record = train(digits, tmp_path, "cnn", mpirun(4), 4)
    assert bits(tmp_path, record) == reference("cnn")
    # The gradients (float32) in 4 parts, of which a step sends 3 twice, or whole to the other 3,
    # whichever the trial at the start has found faster; and what each shard has summed: items,
    # losses, right answers and samples (float64).
    part, whole = -(-record["parameters"] // 4), record["parameters"]
    sums = record["configuration"]["shards"] * 4 * 8
    steps = [2 * 3 * part * 4 + 2 * 3 * sums // 4, 3 * whole * 4 + 2 * 3 * sums // 4]
    assert record["bytes_sent"] in [[record["steps"] * step] * 4 for step in steps]


@pytest.mark.parametrize(
    ("strategy", "name", "ranks"), [("sync_sgd", "six shards", 3), thorough("ddp", "cnn", 2)]
)
def test_the_wait_for_a_slow_rank_is_idle_time(digits, reference, tmp_path, strategy, name, ranks):
    slow = ["env", "LOCKSTEP_FAULT=step:5:1:slow", *mpirun(ranks)]  # it sleeps for 3 seconds
    record = train(digits, tmp_path, name, slow, ranks, "--strategy", strategy)
    assert strategy == "ddp" or bits(tmp_path, record) == reference(name)
    history, waited = pd.read_csv(tmp_path / "history.csv"), 3 * (ranks - 1) / ranks
    assert waited - 0.2 < history["idle_seconds"][0] < waited + 0.5  # the others wait
    assert history["idle_seconds"][0] < history["communication_seconds"][0]
    assert history["idle_seconds"][1] < 1


def test_the_bits_are_the_same_under_torchrun(digits, reference, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    assert bits(tmp_path, train(digits, tmp_path, "cnn", torchrun, 2)) == reference("cnn")


@pytest.mark.thorough
def test_the_seed_and_the_number_of_shards_do_matter(digits, reference, tmp_path):
    python = [sys.executable]
    record = train(digits, tmp_path / "seed", "cnn", python, 1, "--seed", 1)
    assert record["model_sha256"] != reference("cnn")["model"]
    one = ["--shards", 6, "--batch", 66, "--partition", digits / "6" / "shards.csv"]
    record = train(digits, tmp_path / "shards", "cnn", python, 1, *one)
    assert record["model_sha256"] != reference("cnn")["model"]


@pytest.mark.thorough
@pytest.mark.parametrize("how", [["--strategy", "ddp"], ["--reduction", "fast"]])
def test_other_sums_train_as_well_with_bits_of_their_own(how, digits, reference, tmp_path):
    models = {reference("busy")["model"]}
    losses = []
    for ranks in (1, 2):
        output = tmp_path / str(ranks)
        record = train(digits, output, "busy", mpirun(ranks), ranks, *how)
        models.add(record["model_sha256"])
        losses.append(pd.read_csv(output / "history.csv")["loss"])
    assert len(models) == 3
    assert losses[0].iloc[-1] < losses[0].iloc[0]
    assert losses[1].iloc[-1] == pytest.approx(losses[0].iloc[-1], rel=0.2)


@pytest.mark.thorough
def test_an_evaluation_gives_the_same_files_at_any_number_of_ranks(digits, tmp_path):
    train(digits, tmp_path, "busy", [sys.executable], 1)
    done = run_shared(
        [sys.executable, "-m", "lockstep", "average", "--results", tmp_path, "--data", digits],
        REPOSITORY,
    )
    assert done.returncode == 0, done.stderr
    found = []
    for ranks in (1, 2, 3):
        words = ["evaluate", "--results", tmp_path, "--data", digits, "--ranks", ranks]
        done = run_shared([*mpirun(ranks), "-m", "lockstep", *words], REPOSITORY)
        assert done.returncode == 0, done.stderr
        files = ("metrics.json", "predictions.csv", "confusion.csv")
        found.append([(tmp_path / file).read_bytes() for file in files])
    assert found[0] == found[1] == found[2]
    predictions = pd.read_csv(tmp_path / "predictions.csv")
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert list(predictions["sample"]) == list(range(metrics["samples"])) == list(range(359))
    for model in ("last", "averaged"):
        right = (predictions[model] == predictions["label"]).sum()
        assert metrics[model]["correct"] == right
        assert metrics[model]["accuracy"] == right / 359
