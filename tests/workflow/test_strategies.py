"""The comparison of strategies, end to end, with fewer epochs."""

import json

import pandas as pd
import pytest


@pytest.mark.thorough
@pytest.mark.timeout(1200)  # ten runs of up to four ranks, and what follows on each
def test_every_strategy_runs_and_the_report_compares_them(workspace):
    text = (workspace.folder / "config/strategies.yaml").read_text()
    assert "epochs: 20\n" in text
    small = workspace.write("config/small.yaml", text.replace("epochs: 20\n", "epochs: 3\n"))
    with small.open("a") as file:
        file.write("check_seconds: 0\n")
    targets = ["results/small/figures/runs.html", "results/small/local_sgd-once/figures/curves.svg"]
    done = workspace.snakemake("--configfile", small, "--", *targets, timeout=1100)
    assert done.returncode == 0, done.stdout + done.stderr
    results = workspace.folder / "results/small"
    table = pd.read_csv(results / "summary.csv", keep_default_na=False).set_index("run")
    rows = (workspace.folder / "config/strategies.tsv").read_text().splitlines()
    assert list(table.index) == [line.split("\t")[0] for line in rows[1:]]

    model, sent = table["model_sha256"], table["bytes_sent"]
    for run in ("sync_sgd-tree", "pipeline", "hybrid", "fsdp"):
        assert model[run] == model["single"]
    assert len({model[run] for run in ("single", "ddp", "local_sgd-8", "local_sgd-once")}) == 4
    # Replicas that are averaged after the training say nothing to each other in it.
    assert sent["single"] == sent["data_parallel"] == sent["local_sgd-once"] == 0
    assert 0 < sent["local_sgd-8"] < sent["sync_sgd-tree"] / 4
    # The loss and the right answers go along with the gradients, in another message with ddp.
    assert 0.99 * sent["sync_sgd-tree"] < sent["ddp"] <= sent["sync_sgd-tree"]

    once = results / "local_sgd-once"
    replicas = [f"replica-000{shard}.safetensors" for shard in range(4)]
    assert sorted(path.name for path in (once / "snapshots").glob("*.safetensors")) == replicas
    assert json.loads((once / "averaged.json").read_text())["snapshots"] == replicas
    page = (results / "figures/runs.html").read_text()
    for words in ("as single?", "MB sent", "sync every", "local_sgd-once's last model is"):
        assert words in page
    assert "shard 0 alone" in (once / "figures/curves.svg").read_text()
