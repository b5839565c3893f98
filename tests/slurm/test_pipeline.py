"""The pipeline on 2 nodes with 2 ranks each, and launches that cannot work."""

import json

from tests.slurm.conftest import Login


def test_the_pipeline_runs_on_nodes_and_gives_the_bits_of_one_process(login: Login) -> None:
    products = ["check/4x1-auto.json", "four/metrics.json", "one/train.json"]
    done = login.snakemake(*(f"results/{name}" for name in products))
    assert done.returncode == 0, done.stdout + done.stderr
    check, metrics, one = (
        json.loads((login.folder / "results" / name).read_text()) for name in products
    )
    four = json.loads((login.folder / "results/four/train.json").read_text())
    assert [rank["rank"] for rank in four["ranks"]] == [0, 1, 2, 3]
    first, second, third, fourth = (rank["host"] for rank in four["ranks"])
    assert first == second != third == fourth
    assert {first, third} < {"n1", "n2", "n3"}
    assert check["launcher"] == four["launcher"] == one["launcher"] == "srun"
    assert four["backend"] == "mpi4py"
    assert metrics["last"]["accuracy"] > 0.5
    for name in ("model_sha256", "parameters_sha256", "optimizer_sha256", "history_sha256"):
        assert four[name] == one[name]
    assert (login.folder / "logs/slurm/rule_train_run/four").is_dir()


def test_nodes_that_the_ranks_cannot_share_are_refused(login: Login) -> None:
    login.edit("nodes: 2", "nodes: 3")
    done = login.snakemake("train")
    assert done.returncode == 2
    line = "nodes: the profile asks for 3, and the 4 ranks of the run four cannot share them evenly"
    assert [text for text in done.stderr.splitlines() if text.startswith(line)]
    assert not (login.folder / "logs").exists()


def test_an_srun_that_does_not_speak_this_mpis_protocol_is_refused(login: Login) -> None:
    login.edit("--mpi=pmix", "--mpi=none")
    done = login.snakemake("results/check/4x1-auto.json")
    assert done.returncode == 1
    line = "lockstep check, rank 0: ranks: 4 were asked for, and srun brought up 1 on n"
    assert line in (login.folder / "logs/check/4x1-auto.log").read_text()
    assert len(list((login.folder / "logs/slurm/rule_check_world/4x1-auto").iterdir())) == 1
    assert not (login.folder / "results/check/4x1-auto.json").exists()
