"""However a run is interrupted, `snakemake` goes on from where it was, to the same bits."""

import json
import os
import signal
import time

import psutil
import pytest
import yaml

RESULT = ("parameters", "buffers", "optimizer", "history", "snapshots")


@pytest.fixture
def interrupted(workspace):
    """A workspace whose run saves itself often, and takes long enough to be interrupted."""
    config = yaml.safe_load((workspace.folder / "config/config.yaml").read_text())
    config["defaults"] |= {"epochs": 30, "schedule": "constant", "checkpoint_every": "20 steps"}
    workspace.write("config/config.yaml", yaml.safe_dump(config))
    workspace.write("config/runs.tsv", "run\tstrategy\tranks\nlong\tsync_sgd\t2\nref\tsingle\t1\n")
    done = workspace.snakemake("results/config/ref/train.json")
    assert done.returncode == 0, done.stderr
    yield workspace
    for left in processes(workspace):  # by a test that failed in the middle
        left.kill()


def start(workspace, *words):
    """Start training, and return Snakemake when a new checkpoint is there."""
    folder = workspace.folder / "results" / "config" / "long" / "checkpoints"
    before = max((path.name for path in folder.glob("*/step-*")), default="")
    running = workspace.start("results/config/long/train.json", *words)
    while max((path.name for path in folder.glob("*/step-*")), default="") <= before:
        assert running.poll() is None, running.stderr.read()
        time.sleep(0.02)
    return running


def processes(workspace):
    """Return the processes that train in this workspace, by Snakemake's jobs or as orphans."""
    found = []
    for one in psutil.process_iter(["cmdline", "cwd"]):
        if one.info["cwd"] == str(workspace.folder) and "train" in (one.info["cmdline"] or []):
            found.append(one)
    return found


def gone(workspace):
    """Wait until nothing trains any more."""
    _, alive = psutil.wait_procs(processes(workspace), timeout=20)
    return not alive


def launcher(workspace):
    """Return the process of mpirun."""
    (found,) = [p for p in processes(workspace) if p.name() in ("mpirun", "prterun")]
    return found


@pytest.mark.thorough
def test_any_interruption_is_survived(interrupted):
    folder = interrupted.folder / "results/config"

    # Ctrl-C in a terminal: Snakemake and its jobs get it.
    running = start(interrupted)
    os.killpg(running.pid, signal.SIGINT)
    running.wait(60)
    assert gone(interrupted)
    for name in ("train.json", "model.safetensors"):
        assert not (folder / "long" / name).exists()

    # Snakemake is killed: its jobs go on, and nobody may train the same run beside them.
    running = start(interrupted)
    running.kill()
    running.wait(60)
    orphans = processes(interrupted)
    for orphan in orphans:
        orphan.suspend()  # or they might be done before anybody else can try
    assert interrupted.snakemake("--unlock").returncode == 0
    done = interrupted.snakemake("results/config/long/train.json")
    assert done.returncode == 1
    assert "is training this very run" in done.stderr
    for orphan in orphans:
        orphan.kill()
    assert gone(interrupted)

    # A scheduler's signal: the run saves itself, and Snakemake's retry goes on.
    running = start(interrupted, "--retries", "1")
    launcher(interrupted).send_signal(signal.SIGUSR1)
    _, errors = running.communicate(timeout=400)
    assert running.returncode == 0, errors
    assert "interrupted by SIGUSR1" in errors

    record, reference = (
        json.loads((folder / name / "train.json").read_text()) for name in ("long", "ref")
    )
    assert len(record["segments"]) >= 4
    for name in RESULT:
        assert record[f"{name}_sha256"] == reference[f"{name}_sha256"], name
    litter = {path.name for path in (folder / "long").rglob(".*")}
    assert litter <= {".snakemake_timestamp"}
