"""The pipeline on 2 nodes with 2 ranks each; its training is cut short in every way SLURM has."""

import json
import sys
from typing import Any

import pytest

from tests.conftest import run
from tests.slurm.cluster import Cluster
from tests.slurm.conftest import Login

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def finished(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Login:
    """Run the pipeline, and let its training lose one job after the other."""
    login = Login(tmp_path_factory.mktemp("login"), cluster)
    products = ["check/4x1-auto.json", "check/1x1-auto.json", "four/metrics.json"]
    running = login.start(*(f"results/slurm/{name}" for name in products))
    try:
        cut_short(login, cluster)
        running.wait(timeout=240)
    finally:
        running.kill()
    assert running.returncode == 0, (login.folder / "said").read_text()
    return login


def cut_short(login: Login, cluster: Cluster) -> None:
    """Drain a node and cancel the job on it, let the next meet its time limit, kill its node."""
    job, nodes = login.training()
    drained = nodes[1]
    cluster.call("scontrol", "update", f"nodename={drained}", "state=drain", "reason=broken")
    cluster.call("scancel", job)

    job, nodes = login.training(after=job)
    assert drained not in nodes
    cluster.call("scontrol", "update", f"nodename={drained}", "state=resume")
    cluster.call("scontrol", "update", f"jobid={job}", "timelimit=2")

    job, nodes = login.training(after=job)
    cluster.kill(nodes[1])

    login.training(after=job)
    cluster.boot(nodes[1])
    login.write("hurry", "")


def record(login: Login, name: str) -> Any:
    return json.loads((login.folder / "results/slurm" / name).read_text())


def test_ranks_land_where_they_were_asked_for(finished: Login) -> None:
    check, four = record(finished, "check/4x1-auto.json"), record(finished, "four/train.json")
    for ranks in (check["ranks"], four["ranks"]):
        assert [rank["rank"] for rank in ranks] == [0, 1, 2, 3]
        first, second, third, fourth = (rank["host"] for rank in ranks)
        assert first == second != third == fourth
        assert {first, third} < {"n1", "n2", "n3"}
    assert check["launcher"] == four["launcher"] == "srun"
    assert four["backend"] == "mpi4py"
    assert (finished.folder / "results/slurm/four/predictions.csv").exists()
    assert len(list((finished.folder / "logs/slurm/rule_train_run/four").iterdir())) == 4


def test_every_job_that_was_cut_short_is_taken_on_by_the_next(finished: Login) -> None:
    segments = record(finished, "four/train.json")["segments"]
    assert [segment["first_step"] for segment in segments] == [
        0,
        *(segment["last_step"] for segment in segments[:-1]),
    ]
    assert len(segments) == 4
    assert all(segment["last_step"] > segment["first_step"] for segment in segments)
    said = (finished.folder / "said").read_text()
    assert f"interrupted by SIGTERM after step {segments[0]['last_step']}; it is saved" in said
    assert f"interrupted by SIGUSR1 after step {segments[1]['last_step']}; it is saved" in said


def test_one_process_where_users_log_in_gives_the_same_bits(finished: Login) -> None:
    command = [sys.executable, "-m", "lockstep", "reproduce", "results/slurm/four"]
    done = run(command, finished.folder)
    assert done.returncode == 0, done.stdout + done.stderr


def test_nodes_that_the_ranks_cannot_share_are_refused(login: Login) -> None:
    login.edit("nodes: 2", "nodes: 3")
    done = login.snakemake("train")
    assert done.returncode == 2
    line = "nodes: the profile asks for 3, and the 4 ranks of the run four cannot share them evenly"
    assert [text for text in done.stderr.splitlines() if text.startswith(line)]
    assert not (login.folder / "logs").exists()


def test_an_srun_that_does_not_speak_this_mpis_protocol_is_refused(login: Login) -> None:
    login.edit("--mpi=pmix", "--mpi=none")
    done = login.snakemake("results/slurm/check/4x1-auto.json")
    assert done.returncode == 1
    line = "lockstep check, rank 0: ranks: 4 were asked for, and srun brought up 1 on n"
    assert line in (login.folder / "logs/slurm/check/4x1-auto.log").read_text()
    assert len(list((login.folder / "logs/slurm/rule_check_world/4x1-auto").iterdir())) == 1
    assert not (login.folder / "results/slurm/check/4x1-auto.json").exists()
