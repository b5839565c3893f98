"""Three hosts, and the bits that one process gives."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import run
from tests.hosts.hosts import Network, missing
from tests.hosts.runs import flags, hashes
from tests.workflow.conftest import Workspace


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """Start three hosts, node1 to node3, for all tests."""
    if reason := missing():
        pytest.skip(reason)
    with Network(tmp_path_factory.mktemp("network"), 3) as network:
        yield network


@pytest.fixture(scope="session")
def reference(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the hashes that one process gives."""
    output = tmp_path_factory.mktemp("reference")
    done = run([sys.executable, "-m", "lockstep", *flags(digits, output, 1)], output)
    assert done.returncode == 0, done.stderr
    return hashes(output)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Return a fresh copy of the workflow."""
    return Workspace(tmp_path)
