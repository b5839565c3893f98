"""Who am I among the processes that were started together?

MPI is asked first: a batch script of SLURM's sets SLURM_PROCID=0, and every rank of an mpirun in it
inherits that. mpi4py is imported only where a launcher of MPI's has started this process: elsewhere
the import alone can abort.
"""

import faulthandler
import os
import socket
import sys
from dataclasses import dataclass
from typing import Any

from lockstep import mpi
from lockstep.distributed.ending import bind_to_launcher
from lockstep.errors import UserError

# Set by the launchers of Open MPI, of any MPI over PMIx, and of MPICH and Intel MPI.
_MPI_SIGNS = ("OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK", "MPI_LOCALRANKID")

# What torch reads, and torchrun sets.
_PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")

# Seconds that ranks wait for one another in a communication, unless told otherwise. A rank that is
# slow to read a batch is no reason to stop; one that is gone is noticed long before. While a host's
# first rank reads all of the data, under MPI the others wait as much longer as that may take.
TIMEOUT = 600.0
# Between hosts they wait at least so long. By then mpirun has noticed by itself that a host is
# lost, and ended the job. If ranks ask it to before, it waits for that host, maybe for very long.
BETWEEN_HOSTS = 20.0


@dataclass
class World:
    """This process's place: `rank` of `size`, `local_rank` of `local_size` on this host.

    It is another one when ranks have died (`lockstep.distributed.elastic`).
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    launcher: str
    comm: Any = None
    """mpi4py's communicator over all ranks, watched, where MPI started them."""
    timeout: float = TIMEOUT
    """Seconds that ranks are to wait for one another."""
    survives: bool = False
    """Whether ranks go on when others die."""
    ahead: int = 0
    """How many ranks a job has that this process is to join; until then it is a world of one."""

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0: the one that speaks and writes for all."""
        return self.rank == 0 and not self.ahead

    @property
    def patience(self) -> float:
        """Seconds that ranks do wait for one another: between hosts at least BETWEEN_HOSTS."""
        return self.timeout if self.one_host else max(self.timeout, BETWEEN_HOSTS)

    @property
    def one_host(self) -> bool:
        """Whether all ranks are on this host."""
        return self.local_size == self.size


def discover(expected: int | None = None, timeout: float = TIMEOUT) -> World:
    """Find out who this process is; from here on no rank waits for another without end.

    Args:
        expected: the number of ranks that was asked for; None takes as many as there are.
        timeout: the seconds that ranks wait for one another before the job is ended.

    Raises:
        UserError: another number came up. A launcher that does not speak this MPI's start-up
            protocol starts so many worlds of one rank each, and says nothing. Or the variables that
            say who this process is make no sense.
    """
    world = _discover(timeout)
    if expected is not None and world.size != expected and not world.ahead:
        raise UserError(
            f"ranks: {expected} were asked for, and {world.launcher} brought up {world.size} on "
            f"{socket.gethostname()}; launch with `mpirun -n {expected}` of the MPI that mpi4py "
            f"uses, or `srun --mpi=pmix -n {expected}`"
        )
    return world


def _discover(timeout: float) -> World:
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env:
        return World(*_place(), launcher="torchrun", timeout=timeout)
    if _started_by_mpi():
        bind_to_launcher()
        return from_mpi(timeout)
    if "RANK" in env and "WORLD_SIZE" in env:  # started by hand, or by a script of the user's
        place = _place(LOCAL_RANK=env["RANK"], LOCAL_WORLD_SIZE=env["WORLD_SIZE"])
        return World(*place, launcher="environment", timeout=timeout)
    launcher = "srun" if "SLURM_STEP_ID" in env else "python"
    return World(0, 1, 0, 1, launcher, timeout=timeout)


def _started_by_mpi() -> bool:
    return any(sign in os.environ for sign in _MPI_SIGNS)


def _place(**defaults: str) -> tuple[int, int, int, int]:
    """Return (rank, size, local rank, local size) as torch's variables have them.

    Raises:
        UserError: one is missing, is no number, or is none of so many.
    """
    found = {name: os.environ.get(name, defaults.get(name)) for name in _PLACE}
    said = ", ".join(f"{name}={value}" for name, value in found.items() if value is not None)
    numbers = [int(v) if v is not None and v.isdecimal() else -1 for v in found.values()]
    rank, size, local_rank, local_size = numbers
    if 0 <= rank < size and 0 <= local_rank < local_size <= size:
        return rank, size, local_rank, local_size
    raise UserError(
        f"environment: expected {', '.join(_PLACE)}, each rank below its size, as torchrun sets "
        f"them; found {said or 'none of them'}; set them all, or unset them and TORCHELASTIC_RUN_ID"
    )


def from_mpi(timeout: float = TIMEOUT) -> World:
    """Ask MPI, and tell torch by the variables that it reads.

    Args:
        timeout: the seconds that ranks wait for one another before the job is ended.

    Raises:
        UserError: another launcher than MPI's started this process as one of several.
    """
    # Whether all are on one host is not known yet.
    longest = max(timeout, BETWEEN_HOSTS)
    starts = "mpi4py.MPI" not in sys.modules
    if starts:  # it waits for all ranks, and MPI cannot be asked yet whether one has given up
        faulthandler.dump_traceback_later(longest, exit=True, file=sys.__stderr__ or 2)
    try:
        mpi.load()
    finally:  # without MPI, too: a script may go on by Gloo
        if starts:
            faulthandler.cancel_dump_traceback_later()
    from mpi4py import MPI

    said = os.environ.get("WORLD_SIZE")
    if MPI.COMM_WORLD.size == 1 and not _started_by_mpi() and said not in (None, "1"):
        raise UserError(
            f"mpi://: WORLD_SIZE is {said}, and MPI has started 1 rank: another launcher started "
            f"this process; launch with mpirun, or `srun --mpi=pmix`, or take env:// under torchrun"
        )
    launcher = "srun" if "SLURM_STEP_ID" in os.environ else "mpirun"
    world = World(0, 1, 0, 1, launcher=launcher, timeout=timeout)
    take_place(world, longest)
    if mpi.JOINS in os.environ:
        from lockstep.mpi import newcomers

        world.ahead = newcomers.others()
    return world


def take_place(world: World, limit: float) -> None:
    """Have a world say who this process is among the ranks that MPI has now; all call it.

    Args:
        world: gets its place, and the communicator.
        limit: the seconds that they may wait for one another in finding out.
    """
    from mpi4py import MPI

    from lockstep.mpi import losses
    from lockstep.mpi.watchdog import Watched

    comm, losses.is_over = losses.world(), False
    local = Watched(comm, "world", limit).Split_type(MPI.COMM_TYPE_SHARED)
    losses.know(Watched(local, "world", limit).allgather(os.getpid()))
    world.rank, world.size, world.local_rank, world.local_size = place = (
        comm.rank,
        comm.size,
        local.rank,
        local.size,
    )
    local.Free()
    os.environ.update({name: str(value) for name, value in zip(_PLACE, place, strict=True)})
    world.comm = Watched(comm, "world", world.patience)
