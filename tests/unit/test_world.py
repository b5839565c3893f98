"""comm.world: who this process is, where no launcher of MPI's has started it."""

import faulthandler
import socket
import sys

import pytest

from lockstep.distributed.world import World, discover, from_mpi


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in ("OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK", "MPI_LOCALRANKID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)


def test_without_a_launcher_there_is_one_rank():
    assert discover(1) == World(0, 1, 0, 1, "python")
    assert discover(1).one_host


def test_a_batch_script_of_slurms_is_no_rank(monkeypatch):
    for name, value in (("SLURM_PROCID", "0"), ("SLURM_NTASKS", "4"), ("SLURM_JOB_ID", "1")):
        monkeypatch.setenv(name, value)
    assert discover(1).size == 1


def test_torchrun_says_it_in_the_environment(monkeypatch):
    places = {"RANK": 5, "WORLD_SIZE": 8, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 4}
    for name, value in ({"TORCHELASTIC_RUN_ID": "x"} | places).items():
        monkeypatch.setenv(name, str(value))
    world = discover(8)
    assert world == World(5, 8, 1, 4, "torchrun")
    assert not world.one_host


def test_another_number_of_ranks_than_asked_for_is_refused(refused):
    with refused("ranks: 4", "python brought up 1", socket.gethostname(), "mpirun -n 4"):
        discover(4)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"RANK": "abc", "WORLD_SIZE": "2"}, "RANK=abc"),
        ({"RANK": "0", "WORLD_SIZE": "two"}, "WORLD_SIZE=two"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK=-1"),
        ({"TORCHELASTIC_RUN_ID": "x"}, "none of them"),
        ({"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "WORLD_SIZE": "1"}, "RANK=0, WORLD_SIZE=1"),
    ],
)
def test_variables_that_make_no_sense_are_refused(variables, said, monkeypatch, refused):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with refused("environment: expected RANK, WORLD_SIZE", "found", said):
        discover()


def test_without_mpi_a_script_may_go_on(monkeypatch):
    calls = []
    for name in ("dump_traceback_later", "cancel_dump_traceback_later"):
        monkeypatch.setattr(faulthandler, name, lambda *_, name=name, **__: calls.append(name))
    for name in ("mpi_yield_when_idle", "btl_tcp_if_exclude"):
        monkeypatch.setenv(f"OMPI_MCA_{name}", "0")
    monkeypatch.delitem(sys.modules, "mpi4py.MPI", raising=False)
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(ImportError):
        from_mpi()
    assert calls == ["dump_traceback_later", "cancel_dump_traceback_later"]
