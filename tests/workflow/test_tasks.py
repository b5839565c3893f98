"""What is no classification: numbers and tokens, from the user's own arrays to the report."""

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import mean_absolute_error, r2_score

from tests.arrays import numbers, tokens
from tests.conftest import thorough

CONFIG = """
dataset: {{name: npz, task: {task}, path: own.npz}}
runs: config/mine.tsv
check_seconds: 0
defaults:
  model: {model}
  oversubscribe: true
  shards: 4
  batch: 32
  epochs: 2
"""


@pytest.mark.parametrize(
    ("task", "model", "arrays", "main"),
    [
        thorough("regression", "mlp", numbers(), "rmse"),
        thorough("language", "gpt", tokens(), "perplexity"),
    ],
)
def test_from_own_arrays_to_the_report(workspace, task, model, arrays, main):
    np.savez(workspace.folder / "own.npz", **arrays)
    workspace.write("config/mine.tsv", "run\tranks\ntwo\t2\n")
    config = workspace.write("config/mine.yaml", CONFIG.format(task=task, model=model))
    done = workspace.snakemake("--configfile", config)
    assert done.returncode == 0, done.stdout + done.stderr
    assert workspace.jobs("--configfile", config) == {}

    results = workspace.folder / "results/mine"
    summary = pd.read_csv(results / "summary.csv")
    history = pd.read_csv(results / "two/history.csv")
    metrics = json.loads((results / "two/metrics.json").read_text())
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]
    assert summary[f"{main}_last"][0] == metrics["last"][main]
    report = (results / "report.html").read_text()
    for figure in ("curves.svg", "time.svg", f"{main}.svg", "runs.html"):
        assert figure in report
    assert not list(results.rglob("confusion.*"))
    if task == "regression":
        found = pd.read_csv(results / "two/predictions.csv")
        target, last = (
            found.pivot(index="sample", columns="output")[c] for c in ("target", "last")
        )
        assert metrics["last"]["r2"] == pytest.approx(r2_score(target, last), rel=1e-5)
        assert metrics["last"]["mae"] == pytest.approx(mean_absolute_error(target, last), rel=1e-5)
    else:
        assert summary["perplexity_last"][0] < 7  # a guess among 7 tokens
