"""One cluster for all tests, and Snakemake on it with the profile, as its users edit it."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import environment, run
from tests.slurm.cluster import Cluster, why_not
from tests.workflow.conftest import Workspace

RUNS = "run\tranks\nfour\t4\none\t1\n"
CONFIG = "runs: config/slurm.tsv\ncheck_seconds: 1\ndefaults: {epochs: 3, oversubscribe: true}\n"


class Login(Workspace):
    """A copy of the workflow where users of the cluster log in; its profile is edited for it."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        super().__init__(folder)
        self.cluster = cluster
        self.write("config/slurm.tsv", RUNS)
        self.write("config/slurm.yaml", CONFIG)
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
        # The jobs are short: asked about after 5, 20 and 45 seconds.
        command += ["--slurm-init-seconds-before-status-checks", "5"]
        return self.cluster.command(*command, *words)

    def snakemake(self, *words: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Submit and wait for the end."""
        return run(list(self.words(*words)), self.folder, timeout)

    def start(self, *words: object) -> subprocess.Popen[str]:
        """Submit, and return at once."""
        return subprocess.Popen(
            self.words(*words),
            cwd=self.folder,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


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
