"""One cluster for all tests, and Snakemake on it with the profile, as its users edit it."""

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import environment, run
from tests.slurm.cluster import Cluster, why_not
from tests.workflow.conftest import Workspace

RUNS = "run\tranks\nfour\t4\none\t1\n"
CONFIG = """\
runs: config/slurm.tsv
check_seconds: 1
defaults: {model: "patient:net", epochs: 30, checkpoint_every: 4 steps, oversubscribe: true}
"""


class Login(Workspace):
    """A copy of the workflow where users of the cluster log in; its profile is edited for it."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        super().__init__(folder)
        self.cluster = cluster
        self.write("config/slurm.tsv", RUNS)
        self.write("config/slurm.yaml", CONFIG)
        shutil.copy(Path(__file__).parent / "patient.py", folder)
        self.edit(r" *slurm_account: .*\n", "")

    def edit(self, pattern: str, text: str) -> None:
        """Change the line of the profile that matches a pattern."""
        path = self.folder / "workflow/profiles/slurm/config.yaml"
        changed, count = re.subn(pattern, text, path.read_text())
        assert count == 1, pattern
        path.write_text(changed)

    def words(self, *words: object) -> list[str]:
        """Return the command that submits what these words of Snakemake's ask for."""
        command = [sys.executable, "-m", "snakemake", "--profile", "workflow/profiles/slurm"]
        command += ["--configfile", "config/slurm.yaml"]
        # Snakemake asks about jobs after 1, 12, 33, 64 … seconds, and after one has ended anew.
        command += ["--slurm-init-seconds-before-status-checks", "1"]
        return self.cluster.command(*command, *words)

    def snakemake(self, *words: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Submit and wait for the end."""
        return run(list(self.words(*words)), self.folder, timeout)

    def start(self, *words: object) -> subprocess.Popen[str]:
        """Submit, and go on; what Snakemake says is in the file `said`."""
        with (self.folder / "said").open("w") as said:
            return subprocess.Popen(
                self.words(*words),
                cwd=self.folder,
                env=environment(),
                stdout=said,
                stderr=said,
                text=True,
            )

    def training(self, after: str = "") -> tuple[str, list[str]]:
        """Wait until a training job, another one than `after`, has saved steps of its own.

        Returns:
            Its id, and its nodes; the first one runs Snakemake as well, and starts the ranks.
        """
        seen: dict[str, int] = {}  # the step from which each job goes on: one may die at its start

        def has_begun() -> bool:
            running, step = self._running(after), self.step()
            return bool(running) and step > seen.setdefault(running[0], step) + 4

        self._wait_until(has_begun)
        job, nodes = self._running(after)
        return job, self.cluster.call("scontrol", "show", "hostnames", nodes).split()

    def _running(self, after: str) -> list[str]:
        lines = self.cluster.call("squeue", "--states=running", "--format=%i %N %k").splitlines()
        jobs = [line.split() for line in lines if "rule_train_run" in line]
        return next(([job, nodes] for job, nodes, _ in jobs if job != after), [])

    def step(self) -> int:
        """Return the step of the newest checkpoint."""
        found = self.folder.glob("results/slurm/four/checkpoints/*/step-*")
        return max((int(path.name.removeprefix("step-")) for path in found), default=0)

    def _wait_until(self, happened: Callable[[], object]) -> None:
        deadline = time.monotonic() + 240
        while not happened():
            assert time.monotonic() < deadline, (self.folder / "said").read_text()
            time.sleep(0.2)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Start the cluster."""
    if reason := why_not():
        pytest.skip(reason)
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    yield cluster
    cluster.stop()


@pytest.fixture
def login(cluster: Cluster, tmp_path: Path) -> Login:
    """Return a fresh copy of the workflow."""
    return Login(tmp_path, cluster)
