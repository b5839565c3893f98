import pytest

from tests.conftest import REPOSITORY, mpirun, run, thorough
from tests.crew import run_shared

PROGRAM = REPOSITORY / "tests" / "mpi" / "programs" / "tree_sums.py"


@pytest.mark.parametrize(
    ("ranks", "backend"),
    [
        *[(2, "mpi4py"), (3, "gloo"), (4, "mpi4py")],
        *[thorough(1, "mpi4py"), thorough(2, "gloo"), thorough(3, "mpi4py")],
        *[thorough(5, "gloo"), thorough(7, "mpi4py")],
    ],
)
def test_sums_are_along_the_tree_at_any_number_of_ranks(ranks, backend, tmp_path):
    done = run_shared([*mpirun(ranks), PROGRAM, ranks, backend], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "all sums are right" in done.stdout


@pytest.mark.thorough
def test_a_ring_is_found_not_to_follow_the_tree(tmp_path):
    done = run_shared([*mpirun(4), PROGRAM, 4, "gloo"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "_butterfly" in done.stdout
    assert "all sums are right" in done.stdout
    ring = ["--mca", "coll_tuned_use_dynamic_rules", "1", "--mca", "coll_tuned_allreduce_algorithm"]
    for algorithm, way in (("4", "_butterfly"), ("3", "_native")):
        words = [*mpirun(4)[:-3], *ring, algorithm, "--mca", "coll", "^han", *mpirun(4)[-3:]]
        done = run([*words, PROGRAM, 4, "mpi4py"], tmp_path)
        assert done.returncode == 0, done.stderr
        assert way in done.stdout
