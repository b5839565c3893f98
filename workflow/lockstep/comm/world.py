"""Who am I among the processes that were started together?

MPI is asked first: a batch script of SLURM's sets SLURM_PROCID=0, and every rank of an mpirun in it
inherits that. mpi4py is imported only where a launcher of MPI's has started this process: elsewhere
the import alone can abort.
"""

import ctypes
import os
import signal
import socket
import sys
from dataclasses import dataclass
from typing import Any

from lockstep.errors import UserError

# Set by the launchers of Open MPI, of any MPI over PMIx, and of MPICH and Intel MPI.
_MPI_SIGNS = ("OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK", "MPI_LOCALRANKID")

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class World:
    """This process's place: `rank` of `size`, `local_rank` of `local_size` on this host."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    launcher: str
    comm: Any = None
    """mpi4py's communicator over all ranks, where MPI started them."""

    @property
    def one_host(self) -> bool:
        """Whether all ranks are on this host."""
        return self.local_size == self.size


def discover(expected: int | None = None) -> World:
    """Find out who this process is.

    Args:
        expected: the number of ranks that was asked for; None takes as many as there are.

    Raises:
        UserError: another number came up. A launcher that does not speak this MPI's start-up
            protocol starts so many worlds of one rank each, and says nothing.
    """
    world = _discover()
    if expected is not None and world.size != expected:
        raise UserError(
            f"ranks: {expected} were asked for, and {world.launcher} brought up {world.size} on "
            f"{socket.gethostname()}; launch with `mpirun -n {expected}` of the MPI that mpi4py "
            f"uses, or `srun --mpi=pmix -n {expected}`"
        )
    return world


def _discover() -> World:
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        rank, size, local_rank, local_size = (int(env[name]) for name in names)
        return World(rank, size, local_rank, local_size, "torchrun")
    if any(sign in env for sign in _MPI_SIGNS):
        _end_with_launcher()
        return from_mpi()
    if "RANK" in env and "WORLD_SIZE" in env:  # started by hand, or by a script of the user's
        rank, size = int(env["RANK"]), int(env["WORLD_SIZE"])
        local = env.get("LOCAL_RANK", rank), env.get("LOCAL_WORLD_SIZE", size)
        return World(rank, size, int(local[0]), int(local[1]), "environment")
    return World(0, 1, 0, 1, "srun" if "SLURM_STEP_ID" in env else "python")


def _end_with_launcher() -> None:
    """Have the kernel kill this rank when its launcher ends: nobody else would.

    A launcher that has lost a host ends without its ranks; those may wait for that host's in a call
    that looks at nothing else. Linux alone has this.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def from_mpi() -> World:
    """Ask MPI, and tell torch by the variables that it reads."""
    # A rank of Open MPI's that waits spins. It is to offer its core to whoever can use it: to its
    # own threads that compute, or to another program. On an idle machine that costs nothing.
    os.environ.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")
    # These bridges have one address on all hosts, and Open MPI takes them for a way between hosts.
    if "OMPI_MCA_btl_tcp_if_include" not in os.environ:
        os.environ.setdefault("OMPI_MCA_btl_tcp_if_exclude", "127.0.0.0/8,docker0,virbr0")
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    local = comm.Split_type(MPI.COMM_TYPE_SHARED)
    place = (comm.rank, comm.size, local.rank, local.size)
    local.Free()
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    os.environ.update({name: str(value) for name, value in zip(names, place, strict=True)})
    launcher = "srun" if "SLURM_STEP_ID" in os.environ else "mpirun"
    return World(*place, launcher=launcher, comm=comm)
