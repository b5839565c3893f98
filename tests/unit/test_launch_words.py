"""What the rules start: flags that stages take, and the words that start ranks."""

import json
import shlex

import pytest

from lockstep.distributed import launcher
from lockstep.pipeline import launch
from lockstep.pipeline.cli import make_parser
from lockstep.pipeline.config import UPKEEP, Config, Dataset, Run

MPIRUN = ["container", "run", "/opt/bin/mpirun", "--map-by", ":OVERSUBSCRIBE"]
SRUN = ["srun", "--mpi=pmix", "container", "run"]
NUMBERS = "--kill-on-bad-exit=1 --nodes={} --ntasks={} --ntasks-per-node={} --cpus-per-task={}"


@pytest.fixture(params=[0, 1000], ids=["root", "user"])
def user(request, monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: request.param)
    return request.param


def test_ranks_are_started_by_mpirun(user):
    root = [] if user else ["--allow-run-as-root"]
    python = ["python", "-m", "mpi4py"]
    assert launcher.start(MPIRUN, 3) == [*MPIRUN, *root, "-n", "3", *python]
    assert launcher.start(["mpiexec"], 3) == ["mpiexec", "-n", "3", *python]
    assert launcher.start(MPIRUN, 1) == ["python"]


def test_srun_gets_the_numbers_that_the_job_has_and_no_mpi_for_one_rank():
    four = launcher.start(SRUN, 4, threads=3, nodes=2)
    numbers = NUMBERS.format(2, 4, 2, 3)
    assert shlex.join(four) == f"srun {numbers} --mpi=pmix container run python -m mpi4py"
    one = launcher.start(SRUN, 1, threads=2, nodes=2)
    numbers = NUMBERS.format(1, 1, 1, 2)
    assert shlex.join(one) == f"srun {numbers} --mpi=none container run python"


def test_mpirun_hands_on_what_decides_bits_and_what_is_said_of_the_network(monkeypatch):
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth1")
    monkeypatch.setenv("PYTHONPATH", "/mine")
    words = launcher.mpirun([])
    assert _handed_on(words) >= {"PATH", "PYTHONPATH", "MKL_CBWR", "GLOO_SOCKET_IFNAME"}
    assert "--host" not in words


def test_mpirun_hands_on_nothing_that_is_not_there(monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert "PYTHONPATH" not in _handed_on(launcher.mpirun([]))


def _handed_on(words):
    return {words[at + 1] for at, word in enumerate(words) if word == "-x"}


@pytest.mark.parametrize(
    ("variable", "value", "survives"),
    [
        ("OMPI_MCA_mpi_ft_enable", "1", True),
        ("OMPI_MCA_mpi_ft_enable", "0", False),
        ("OMPI_MCA_pml", "ob1", True),
        ("OMPI_MCA_pml", "ucx", False),
    ],
)
def test_ranks_are_survived_unless_mpi_is_told_otherwise(monkeypatch, variable, value, survives):
    monkeypatch.setenv(variable, value)
    words = launcher.start(launcher.mpirun([]), 2)
    assert ("--with-ft ulfm" in shlex.join(words)) == survives
    assert words[-1] == ("lockstep.mpi" if survives else "mpi4py")


def test_ranks_are_on_the_hosts_of_a_hostfile(tmp_path, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_NUM_NODES", raising=False)
    assert launcher.hosts(tmp_path) == []
    (tmp_path / "hostfile").write_text("# ours\nnode1 slots=8  # the first\n\nnode2\n")
    found = launcher.hosts(tmp_path)
    assert found == [("node1", 8), ("node2", None)]
    assert "--host node1:8,node2:*" in " ".join(launcher.mpirun(found))


def test_a_stage_follows_what_starts_it():
    assert launch.start(launch.OURS, 4, 1, 1) == ["lockstep", "launch", "-n", "4"]
    assert launch.start(launch.OURS, 1, 1, 1) == ["python", "-m", "lockstep"]
    assert launch.start(["mpiexec"], 2, 1, 1)[:3] == ["mpiexec", "-n", "2"]
    assert launch.start(["mpiexec"], 2, 1, 1)[-2:] == ["-m", "lockstep"]


@pytest.mark.parametrize(
    ("ranks", "nodes", "each", "count"),
    [(1, 1, 0, "1"), (2, 2, 0, "2"), (4, 2, 2, 0), (4, 1, 4, 0)],
)
def test_slurm_is_told_either_the_ranks_of_a_node_or_those_of_the_job(ranks, nodes, each, count):
    assert launch.tasks_per_node(ranks, nodes) == each
    assert launch.tasks(ranks, nodes) == count


def test_nodes_that_ranks_cannot_share_are_refused(refused):
    runs = {"one": Run(ranks=1), "four": Run(ranks=4)}
    launch.check_nodes(runs, 2)
    with refused("nodes: the profile asks for 3, and the 4 ranks of the run four cannot share"):
        launch.check_nodes(runs, 3)


def test_the_stage_takes_the_flags_and_has_the_run_again():
    values = {"flip": True, "lr": 1e-3, "checkpoint_every": "10 steps", "clip": None, "alpha": 2.0}
    run = Run(**values, scheme="dirichlet", init_method="tcp://host:1")
    words = ["train", "--data=d", "--partition=p", "--output=o"]
    words += shlex.split(f"{launch.train_flags(run)} {launch.upkeep_flags(run)}")
    found = vars(make_parser().parse_args(words))
    assert Run(**{name: found[name] for name in Run.model_fields}) == run
    assert not any(f"--{name.replace('_', '-')}" in launch.train_flags(run) for name in UPKEEP)


def test_only_a_scheme_that_reads_alpha_is_told_of_it():
    assert "--alpha" not in launch.train_flags(Run(scheme="iid"))
    assert (
        launch.flags(Run(scheme="dirichlet"), "scheme", "alpha") == "--scheme=dirichlet --alpha=0.5"
    )
    assert launch.flags(Dataset(), "name", "path", "mirror") == "--name=digits"
    assert launch.flags(Run(oversubscribe=False), "oversubscribe") == "--no-oversubscribe"


def test_runs_that_launch_alike_are_checked_once():
    runs = {
        "a": Run(ranks=2, batch=64, oversubscribe=True),
        "b": Run(ranks=2, model="mine.of:net", strategy="ddp"),
        "c": Run(ranks=1),
        "d": Run(ranks=4, reduction="fast"),
    }
    worlds = launch.worlds(runs.values())
    assert list(worlds) == ["2x1-auto", "1x1-auto", "4x1-auto"]
    assert launch.predicted(runs) == ["a", "d"]
    words = shlex.split(launch.check_flags(worlds["2x1-auto"], Config()))
    found = make_parser().parse_args(["check", "--output=o", *words])
    assert (found.ranks, found.models, found.images) == (2, ["cnn", "mine.of:net"], 16)
    assert (found.shape, found.classes, found.data) == ([1, 28, 28], 10, None)
    assert not found.oversubscribe
    own = Config(dataset={"name": "npz", "path": "a b.npz"})
    assert launch.check_flags([runs["a"]], own).endswith("--oversubscribe")


def test_the_configuration_of_a_report_has_nothing_that_changes_no_result():
    given = {
        "dataset": {"name": "mnist", "mirror": "http://x"},
        "defaults": {"timeout": 9, "lr": 1},
    }
    found = json.loads(launch.resolved(given | {"runs": "r.tsv"}, {"logs": "l"}))
    assert found == {
        "dataset": {"name": "mnist"},
        "defaults": {"lr": 1},
        "pathvars": {"logs": "l"},
        "runs": "r.tsv",
    }
