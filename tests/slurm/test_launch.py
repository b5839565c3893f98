"""`lockstep launch` in a job script on three nodes: ranks and a node are lost, and it goes on."""

import shlex
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import run
from tests.hosts.runs import flags, hashes, record
from tests.slurm.cluster import Cluster

pytestmark = pytest.mark.timeout(300)

FLAGS = ["--model", "patient:net", "--checkpoint-every", "2 steps"]


@pytest.fixture(scope="module")
def reference(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the hashes that one process gives."""
    folder = tmp_path_factory.mktemp("one")
    shutil.copy(Path(__file__).with_name("patient.py"), folder)
    (folder / "hurry").touch()
    done = run([sys.executable, "-m", "lockstep", *flags(digits, folder, 1, *FLAGS)], folder)
    assert done.returncode == 0, done.stderr
    return hashes(folder)


class Job:
    """A job on all nodes that trains on a rank on each, until it is told to hurry."""

    def __init__(self, cluster: Cluster, data: Path, folder: Path, *exports: str) -> None:
        self.cluster, self.folder = cluster, folder
        shutil.copy(Path(__file__).with_name("patient.py"), folder)
        launch = shlex.join(map(str, ["lockstep", "launch", "-n", 3, *flags(data, folder, 3)]))
        lines = ["#!/bin/sh", *(f"export {name}" for name in exports)]
        script = folder / "job.sh"
        script.write_text("\n".join([*lines, f"exec {launch} {shlex.join(FLAGS)}"]) + "\n")
        words = ["sbatch", "--parsable", "--no-kill", "--nodes=3", "--ntasks-per-node=1"]
        words += ["--output=log", script]
        self.id = run(cluster.command(*words), folder).stdout.strip()

    def said(self) -> str:
        """Return what it has printed so far."""
        log = self.folder / "log"
        return log.read_text(errors="replace") if log.exists() else ""

    def status(self) -> str:
        """Return its exit status, and the signal that ended it, once it has ended."""
        fields = self.cluster.call("scontrol", "show", "job", self.id).split()
        found = dict(field.partition("=")[::2] for field in fields)
        return found["ExitCode"] if found["JobState"] in ("COMPLETED", "FAILED") else ""

    def wait_until(self, happened: Callable[[], object]) -> None:
        """Return when something has happened."""
        deadline = time.monotonic() + 120
        while not happened():
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.1)

    def wait_for(self, text: str) -> None:
        """Return when it has printed a text."""
        self.wait_until(lambda: text in self.said())

    def wait_for_a_checkpoint(self) -> None:
        """Return when it has saved something."""
        self.wait_until(lambda: list(self.folder.glob("checkpoints/*/step-*")))


def test_a_job_goes_on_without_a_rank_and_without_a_node(
    cluster: Cluster, digits: Path, reference: dict[str, str], tmp_path: Path
) -> None:
    exports = ["OMPI_MCA_mpi_ft_enable=1", "LOCKSTEP_FAULT=step:1:2:kill"]
    job = Job(cluster, digits, tmp_path, *exports)
    job.wait_for("lost in step 2: rank 2 (n3); 2 of 3 ranks go on")
    job.wait_for_a_checkpoint()
    cluster.kill("n2")
    try:
        job.wait_for("n2 does not answer; 2 ranks go on from the last checkpoint, on n1, n3")
        (tmp_path / "hurry").touch()
        job.wait_until(job.status)
    finally:
        cluster.boot("n2")
    assert job.status() == "0:0", job.said()
    assert hashes(tmp_path) == reference
    segments = record(tmp_path)["segments"]
    assert [part.get("lost") for part in segments] == [None, ["rank 2 (n3)"], None]
    assert [place["host"] for place in record(tmp_path)["ranks"]] == ["n1", "n3"]


def test_a_job_that_is_told_of_its_end_saves(
    cluster: Cluster, digits: Path, tmp_path: Path
) -> None:
    job = Job(cluster, digits, tmp_path)
    job.wait_for_a_checkpoint()
    cluster.call("scancel", "--batch", "--signal=USR1", job.id)  # as --signal=B:USR1@120 does
    job.wait_until(job.status)
    assert job.status() == "75:0", job.said()
    assert "interrupted by SIGUSR1 after step" in job.said()
