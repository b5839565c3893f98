"""The backend mpi4py through mpirun: values, order, and what becomes of a job that fails."""

import pytest

from tests.conftest import REPOSITORY, mpirun, run

PROGRAMS = REPOSITORY / "tests" / "mpi" / "programs"


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_every_collective_gives_the_values_computed_locally_and_those_of_gloo(ranks, tmp_path):
    done = run([*mpirun(ranks), PROGRAMS / "collectives.py"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "as Gloo has them" in done.stdout


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_messages_groups_threads_and_work_under_way(ranks, tmp_path):
    done = run([*mpirun(ranks), PROGRAMS / "works.py"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "work_that_nobody_keeps" in done.stdout
