"""What tests of every kind share: the repository, and commands run as a user runs them."""

import contextlib
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from lockstep.distributed import launcher
from lockstep.pipeline.cli import main

REPOSITORY = Path(__file__).parent.parent

# The numbers of ranks of `make test`; a number more is some seconds for its launch.
FEW_RANKS = (2, 3, 4)


def environment() -> dict[str, str]:
    """Return the environment of a user's shell in which this Python's environment is active."""
    paths = {"PATH": str(Path(sys.executable).parent), "PYTHONPATH": str(REPOSITORY / "src")}
    return os.environ | {
        name: os.pathsep.join(filter(None, [path, os.environ.get(name)]))
        for name, path in paths.items()
    }


def run(words: list[object], cwd: Path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; its output and errors are kept as text."""
    return subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def mpirun(ranks: int) -> list[str]:
    """Return the words that start Python on so many ranks of this machine, be they too many."""
    python = [sys.executable, "-m", "mpi4py"]
    return [*launcher.LOCAL, *launcher.as_root(), "-n", str(ranks), *python]


# InfiniBand's transport, over whatever there is: it has fewer tags than shared memory and TCP.
UCX = ["OMPI_MCA_pml=ucx", "OMPI_MCA_pml_ucx_tls=any", "OMPI_MCA_pml_ucx_devices=any"]


def _has_ucx() -> bool:
    info = Path(sys.executable).with_name("ompi_info")
    return info.exists() and "MCA pml: ucx" in run([info], REPOSITORY).stdout


def thorough(*values: object) -> object:
    """Return a case that `make test` leaves to `make test-all`."""
    return pytest.param(*values, marks=pytest.mark.thorough)


needs_ucx = pytest.mark.skipif(not _has_ucx(), reason="this MPI has no UCX")


def prepare_digits(folder: Path, shards: Iterable[int], *flags: object) -> Path:
    """Prepare the digits below `folder`, with partitions into so many shards in folders S.

    Args:
        flags: further ones of `prepare`.
    """
    data = folder / "digits"
    stages = [["download", "--output", data], ["prepare", "--output", data, *flags]]
    for count in shards:
        stages.append(
            ["partition", "--data", data, "--shards", count, "--output", data / str(count)]
        )
    for stage in stages:
        with contextlib.redirect_stdout(io.StringIO()):
            main([str(word) for word in stage])
    return data


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run what wants root and system packages only where its folder is named, as `make` does."""
    for item in items:
        folder = item.path.relative_to(REPOSITORY / "tests").parts[0]
        if folder in ("hosts", "slurm") and not any(folder in word for word in config.args):
            item.add_marker(pytest.mark.skip(reason=f"`make {folder}-test` runs these, as root"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Have one worker do all of a file whose tests share ranks, or a run; units fill the gaps."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return nodeid if nodeid.startswith("tests/unit/") else nodeid.split("::")[0]

    return ByFile(config, log)


# What mpirun keeps while it runs, in a folder named by its process id. One that was killed leaves
# it, and the next one with that id would not start.
MPIRUNS = tempfile.TemporaryDirectory(prefix="mpiruns-", ignore_cleanup_errors=True)
os.environ["PRTE_MCA_prte_tmpdir_base"] = MPIRUNS.name  # noqa: SIM112 - as PRRTE reads it


def pytest_sessionfinish() -> None:
    """End what has stayed for several tests: a worker of pytest-xdist may not get to `atexit`."""
    from tests.crew import close_all

    close_all()
    MPIRUNS.cleanup()


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the prepared digits, with partitions into 4, 6, 8 and 12 shards."""
    return prepare_digits(tmp_path_factory.mktemp("data"), (4, 6, 8, 12))
