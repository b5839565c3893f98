"""The cluster itself: when it is stopped, nothing of it is left."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, why_not


def processes(folder: Path) -> list[str]:
    """Return the commands of all processes that were started with the name of a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_text().replace("\0", " ")
            known = command + (process / "environ").read_text(errors="replace")
        except OSError:  # it has ended
            continue
        if str(folder) in known:
            found.append(command.strip())
    return found


def wait_until(happened: Callable[[], bool], folder: Path) -> None:
    deadline = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < deadline, processes(folder)
        time.sleep(0.1)


def test_a_cluster_that_is_stopped_leaves_nothing_behind(tmp_path: Path) -> None:
    if reason := why_not():
        pytest.skip(reason)
    cluster = Cluster(tmp_path)
    try:
        cluster.call("sbatch", "--output=said", f"--chdir={tmp_path}", "--wrap", "sleep 86399")
        wait_until(lambda: "sleep 86399" in processes(tmp_path), tmp_path)
    finally:
        cluster.stop()
    wait_until(lambda: not processes(tmp_path), tmp_path)
    assert str(tmp_path) not in Path("/proc/mounts").read_text()
    assert not Path("/sys/class/net/net0").exists()
