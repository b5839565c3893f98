import pytest

from tests.conftest import REPOSITORY, mpirun, run

PROGRAM = REPOSITORY / "tests" / "mpi" / "programs" / "tree_sums.py"


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_sums_are_along_the_tree_at_any_number_of_ranks(ranks, tmp_path):
    done = run([*mpirun(ranks), PROGRAM, ranks], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "all sums are right" in done.stdout
