"""A copy of the workflow for each test, and Snakemake in it as a user runs it."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, environment
from tests.crew import run_shared


class Workspace:
    """A folder with a copy of the workflow, without results."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        for name in ("workflow", "src", "config", "envs"):
            shutil.copytree(REPOSITORY / name, folder / name, ignore=ignored)
        for name in ("Snakefile", "hostfile"):
            shutil.copy(REPOSITORY / name, folder / name)
        (folder / "profiles").symlink_to("workflow/profiles")

    def snakemake(self, *words: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Run `snakemake --cores all` with these words to its end."""
        command = [sys.executable, "-m", "snakemake", "--cores", "all", *words]
        return run_shared(command, self.folder, timeout)

    def start(self, *words: object) -> subprocess.Popen[str]:
        """Start `snakemake --cores all` as a shell does: the leader of a process group."""
        return subprocess.Popen(
            [sys.executable, "-m", "snakemake", "--cores", "all", *map(str, words)],
            cwd=self.folder,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def write(self, name: str, text: str) -> Path:
        """Write a file of the workspace."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def jobs(self, *words: object) -> dict[str, int]:
        """Return how many jobs of each rule Snakemake would run."""
        done = self.snakemake("--dry-run", *words)
        assert done.returncode == 0, done.stdout + done.stderr
        lines = (done.stdout + done.stderr).splitlines()
        if "job" not in {line.split()[0] for line in lines if line.split()}:
            assert any("Nothing to be done" in line for line in lines)
            return {}
        table = lines[next(i for i, line in enumerate(lines) if line.startswith("job ")) + 2 :]
        rows = [line.split() for line in table[: table.index("")]]
        return {name: int(count) for name, count in rows if name not in ("total", "all", "default")}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Return a fresh copy of the workflow."""
    return Workspace(tmp_path)


@pytest.fixture(scope="session")
def make_workspace(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Workspace]:
    """Return a function that makes a workspace for several tests."""
    return lambda name: Workspace(tmp_path_factory.mktemp(name))
