"""Mistakes in the configuration are told in one line, before anything runs."""

import pytest

from tests.conftest import REPOSITORY

# The line of the learning rate.
LR = (REPOSITORY / "config/config.yaml").read_text().partition("  lr: ")[0].count("\n") + 1

MISTAKES = {
    "an unknown key": (
        ("config/config.yaml", "  lr: 0.01", "  learning_rate: 0.01"),
        "config/config.yaml: defaults.learning_rate: no such key",
    ),
    "a key that is nearly one": (
        ("config/config.yaml", "  epochs: 30", "  epoch: 30"),
        "config/config.yaml: defaults.epoch: no such key; did you mean 'epochs'? config/README.md ",
    ),
    "a wrong type": (
        ("config/config.yaml", "lr: 0.01", "lr: fast"),
        "config/config.yaml: defaults.lr: ",
    ),
    "a key that is there twice": (
        ("config/config.yaml", "  lr: 0.01", "  lr: 0.01\n  lr: 0.02"),
        f"config/config.yaml: line {LR + 1}: the key 'lr' is there twice, first in line {LR}; take "
        f"one away",
    ),
    "no YAML": (
        ("config/config.yaml", "  lr: 0.01", "  lr: [0.01"),
        f"config/config.yaml: line {LR + 1}, column 11: not YAML: ",
    ),
    "more ranks than shards": (
        ("config/runs.tsv", "digits\t2", "digits\t5"),
        "config/runs.tsv: digits: ranks: 5 ranks cannot have a shard each of 4; take at most 4",
    ),
    "a batch that the shards do not divide": (
        ("config/config.yaml", "batch: 128", "batch: 130"),
        "config/runs.tsv: digits: batch: 4 shards cannot share a batch of 130 evenly; take 128",
    ),
    "an unknown column": (
        ("config/runs.tsv", "shift", "shfit"),
        "config/runs.tsv: digits: shfit: no such key",
    ),
    "an unknown dataset": (
        ("config/config.yaml", "name: digits", "name: digit"),
        "config/config.yaml: dataset.name: ",
    ),
    "data that are not there": (
        (
            "config/config.yaml",
            "  name: digits\n  task: classification\n  path: null",
            "  name: npz\n  task: classification\n  path: gone.npz",
        ),
        "config/config.yaml: dataset.path: there is no gone.npz in ",
    ),
    "weights that are not there": (
        ("config/config.yaml", "weights: null", "weights: gone.pth"),
        "config/config.yaml: weights of the run digits: there is no gone.pth in ",
    ),
    "patience without a validation part": (
        ("config/config.yaml", "patience: null", "patience: 3"),
        "config/runs.tsv: digits: patience: 3 needs a validation part; set ",
    ),
    "a table that is not there": (
        ("config/config.yaml", "config/runs.tsv", "config/run.tsv"),
        "config/config.yaml: runs: there is no config/run.tsv",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_before_anything_runs(mistake, workspace):
    (name, old, new), message = MISTAKES[mistake]
    text = (workspace.folder / name).read_text()
    assert old in text
    (workspace.folder / name).write_text(text.replace(old, new))
    done = workspace.snakemake()
    assert done.returncode == 2
    assert any(line.startswith(message) for line in (done.stdout + done.stderr).splitlines())
    assert not (workspace.folder / "results").exists()
    assert not (workspace.folder / "data").exists()
