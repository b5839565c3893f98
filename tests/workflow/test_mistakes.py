"""Mistakes in the configuration are told in one line, before anything runs."""

import os
import signal
import time

import pytest

MISTAKES = {
    "an unknown key": (
        ("config/config.yaml", "  lr: 0.01", "  learning_rate: 0.01"),
        "config/config.yaml: defaults.learning_rate: no such key",
    ),
    "a wrong type": (
        ("config/config.yaml", "lr: 0.01", "lr: fast"),
        "config/config.yaml: defaults.lr: ",
    ),
    "ranks that do not divide the shards": (
        ("config/runs.tsv", "digits\t2", "digits\t3"),
        "config/runs.tsv: digits: ranks: 3 ranks cannot share 4 shards evenly; take one of 1, 2, 4",
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
    "a table that is not there": (
        ("config/config.yaml", "config/runs.tsv", "config/run.tsv"),
        "config/run.tsv: cannot be read",
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


def test_ctrl_c_leaves_nothing_half_written_and_the_next_run_goes_on(workspace):
    text = (workspace.folder / "config/config.yaml").read_text()
    (workspace.folder / "config/config.yaml").write_text(text.replace("epochs: 30", "epochs: 4000"))
    running = workspace.start()
    log = workspace.folder / "logs/train/digits.log"
    deadline = time.monotonic() + 120
    while not (log.exists() and "epoch 2/" in log.read_text()):
        assert time.monotonic() < deadline
        assert running.poll() is None, running.stderr.read()
        time.sleep(0.1)
    running.send_signal(signal.SIGINT)  # to Snakemake; a terminal sends it to its jobs as well

    os.killpg(running.pid, signal.SIGINT)
    running.wait(timeout=60)
    assert running.returncode != 0
    run = workspace.folder / "results/digits"
    assert not [
        path for name in ("train.json", "model.safetensors") if (path := run / name).exists()
    ]
    (workspace.folder / "config/config.yaml").write_text(text.replace("epochs: 30", "epochs: 3"))
    done = workspace.snakemake("evaluate")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (run / "metrics.json").exists()
    assert {path.name for path in run.rglob(".*")} <= {".snakemake_timestamp"}
