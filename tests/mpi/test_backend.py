"""The backend mpi4py through mpirun: values, order, and what becomes of a job that fails."""

import re
import shutil
import sys

import psutil
import pytest

from tests.conftest import REPOSITORY, UCX, mpirun, needs_ucx, run, thorough
from tests.crew import run_shared

PROGRAMS = REPOSITORY / "tests" / "mpi" / "programs"

SCRIPT = """\
import torch
import torch.distributed as dist

backend = "cpu:mpi4py,cuda:nccl" if torch.cuda.device_count() > 1 else "mpi4py"
dist.init_process_group(backend, init_method="mpi://")
tensor = torch.tensor(1.0 + dist.get_rank())
dist.all_reduce(tensor)
print(f"rank {dist.get_rank()} of {dist.get_world_size()}: {tensor}", flush=True)
dist.destroy_process_group()
"""


def over_ucx(*values):
    """Return a case whose last value has messages go by UCX, as between hosts with InfiniBand."""
    marks = [needs_ucx, pytest.mark.thorough]
    return pytest.param(*values, UCX, marks=marks, id="-".join([*map(str, values), "ucx"]))


@pytest.mark.parametrize(("ranks", "ucx"), [(2, []), thorough(3, []), over_ucx(2)])
def test_every_collective_gives_the_values_computed_locally_and_those_of_gloo(ranks, ucx, tmp_path):
    done = run_shared(["env", *ucx, *mpirun(ranks), PROGRAMS / "collectives.py"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "as Gloo has them" in done.stdout


@pytest.mark.parametrize(("ranks", "ucx"), [(2, []), thorough(4, []), over_ucx(2)])
def test_messages_groups_threads_and_work_under_way(ranks, ucx, tmp_path):
    done = run(["env", *ucx, *mpirun(ranks), PROGRAMS / "works.py"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "work_that_nobody_keeps" in done.stdout


LAUNCHERS = [
    pytest.param(mpirun(3), id="mpi4py"),
    pytest.param(mpirun(3)[:-2], id="plain", marks=pytest.mark.thorough),
]


def fail(way, tmp_path, launcher):
    """Run the program in which rank 1 of 3 fails; return what was said, and the status."""
    done = run([*launcher, PROGRAMS / "failing.py", way], tmp_path, timeout=120)
    assert "the others went on" not in done.stdout
    assert done.returncode != 0
    return done.stderr


@pytest.mark.thorough
def test_a_rank_that_fails_before_there_is_a_group_ends_the_job(tmp_path):
    assert re.search("rank 1 of 3 .* ending all ranks", fail("early", tmp_path, mpirun(3)[:-2]))


# The group's timeout is five minutes in these: the job ends long before.
@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize(
    ("way", "said"),
    [
        ("raises", r"rank 1 of 3 \(.*\): RuntimeError: a tensor too many; ending all ranks"),
        thorough("os._exit", "exited without calling"),
        ("kill", r"signal\s+9"),
    ],
)
def test_a_rank_that_fails_ends_the_job(way, said, launcher, tmp_path):
    assert re.search(said, fail(way, tmp_path, launcher))


@pytest.mark.thorough
def test_a_rank_that_leaves_ends_the_job(tmp_path):
    assert re.search(r"Errorcode: 3", fail("sys.exit", tmp_path, mpirun(3)))


@pytest.mark.thorough
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_rank_that_hangs_is_found_by_the_timeout(launcher, tmp_path):
    errors = fail("hangs", tmp_path, launcher)
    for rank in (0, 2):
        assert re.search(rf"rank {rank} of 3 .* this rank is in all_reduce", errors)
    assert re.search("rank 1 of 3 .* in no communication over MPI: it may be what hangs", errors)
    line = (PROGRAMS / "failing.py").read_text().partition("# the line that hangs")[0]
    assert re.search(rf'failing.py", line {line.count(chr(10)) + 1} in hang', errors)


@pytest.mark.thorough
@pytest.mark.parametrize("ranks", [2])
def test_torchs_libraries_run_as_over_gloo(ranks, tmp_path):
    words = [*mpirun(ranks), PROGRAMS / "libraries.py", tmp_path / "checkpoint"]
    done = run_shared(words, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "all of torch's libraries agree" in done.stdout


@pytest.mark.thorough
def test_a_script_needs_no_more_than_the_name_once_installed(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(REPOSITORY / "src", source / "src")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    place = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    done = run([*pip, "--target", place, source], tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "empty"
    folder.mkdir()
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    words = ["env", f"PYTHONPATH={place}", *mpirun(2), script]
    done = run(words, folder)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split("\n")) == ["", "rank 0 of 2: 3.0", "rank 1 of 2: 3.0"]
    assert list(folder.iterdir()) == []


@pytest.mark.thorough
@pytest.mark.skipif(psutil.virtual_memory().available < 20e9, reason="needs 20 GB of memory")
def test_more_than_two_to_the_thirty_one_elements(tmp_path):
    done = run_shared([*mpirun(2), PROGRAMS / "long_tensors.py"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "longer than 2^31" in done.stdout


@pytest.mark.thorough
@pytest.mark.parametrize("ucx", [[], over_ucx()])
def test_corners_that_must_not_hang_and_parameters(ucx, tmp_path):
    done = run(["env", *ucx, *mpirun(3), PROGRAMS / "corners.py"], tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "splits_of_which_one_is_long" in done.stdout


@pytest.mark.thorough
@pytest.mark.parametrize("call", ["new_group", "split_group"])
def test_a_rank_that_never_comes_to_a_new_group_is_found(call, tmp_path):
    done = run([*mpirun(2), PROGRAMS / "corners.py", call], tmp_path, timeout=60)
    assert done.returncode != 0
    assert re.search(f"{call} on group .* was not answered within 2 s", done.stderr)
