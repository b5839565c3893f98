"""A session of a training loop of one's own: what it leaves of itself in its process."""

import sys

import pytest

from tests.conftest import REPOSITORY, mpirun, run

PROGRAMS = REPOSITORY / "tests" / "mpi" / "programs"


@pytest.mark.parametrize("ranks", [0, 1, 2])
def test_what_a_session_sets_in_the_process_it_sets_back(ranks, tmp_path):
    launcher = mpirun(ranks) if ranks else [sys.executable]
    done = run([*launcher, PROGRAMS / "restored.py", tmp_path], REPOSITORY)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("set back") == max(ranks, 1)
    assert len({line for line in done.stdout.splitlines() if line.startswith("model")}) == 1
