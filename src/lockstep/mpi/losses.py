"""Ranks that die: MPI tells the others, which go on in a smaller world.

By ULFM (Bland et al., "Post-failure recovery of MPI communication capability", IJHPCA 2013), which
`mpirun --with-ft ulfm` of Open MPI turns on. A call that needs a dead rank raises an error on those
that notice; who notices revokes the communicators, so that nobody waits in one for ever; then all
that are left agree, and shrink.
"""

import contextlib
import os
import re
import signal
import threading
from pathlib import Path
from typing import Any

from mpi4py import MPI

from lockstep.mpi import tells_of_the_dead

_KINDS = {MPI.ERR_PROC_FAILED, MPI.ERR_PROC_FAILED_PENDING, MPI.ERR_REVOKED}

# What ranks agree on is the bits that all of them have. While another thread looked for messages,
# Open MPI 5.0.11 has given none at all, once in some ten thousand agreements, or did not come back.
# So no other thread of ours calls MPI meanwhile; and where there are none, they ask again.
agrees = threading.Lock()
_WELL, _NOT_WELL = 0b11, 0b01

_world: Any = MPI.COMM_WORLD
_used: list[Any] = []
_here: list[int] = []

failed: dict[str, int] = {}
"""How often ranks have failed by an exception, by its place in the code."""

is_over = False
"""Whether ranks have come to the end, and who is missed may just have left before this one."""

are_survived = False
"""Whether those that are left go on; else a death ends the job."""


def world() -> Any:
    """Return the communicator of all ranks that are left; of all, as long as nobody has died."""
    return _world


def is_last() -> bool:
    """Return whether this rank is the only one left: mpirun takes its exit status, and none that it
    aborts with."""
    if not tells_of_the_dead() or MPI.Is_finalized():
        return False
    return len(dead()) + 1 >= _world.size


def abort(status: int) -> None:
    """End all ranks that are left, so that mpirun ends with a status."""
    if tells_of_the_dead():
        sweep()
    if is_last():
        os._exit(status)
    _world.Abort(status)


def dead() -> list[int]:
    """Return the ranks of the world that are known to have died."""
    if not tells_of_the_dead():
        return []
    found = _world.Get_failed()
    return sorted(MPI.Group.Translate_ranks(found, range(found.size), _world.Get_group()))


def use(comm: Any) -> Any:
    """Return a communicator, which is revoked with the world."""
    _used.append(comm)
    return comm


def forget(comm: Any) -> None:
    """Give a communicator back, unless it is revoked: that would wait for the dead."""
    if comm in _used:
        _used.remove(comm)
    if not MPI.Is_finalized() and not (tells_of_the_dead() and comm.Is_revoked()):
        comm.Free()


def is_one(error: MPI.Exception) -> bool:
    """Return whether an error of MPI's says that a rank has died."""
    kind = error.Get_error_class()
    if kind == MPI.ERR_IN_STATUS:  # of one of several requests
        revoked = (comm.Is_revoked() for comm in (_world, *_used))
        return tells_of_the_dead() and (bool(dead()) or any(revoked))
    return kind in _KINDS


def wait_for(requests: list[Any]) -> None:
    """Wait until requests are done, or, where a rank has died, use no memory any more.

    Raises:
        MPI.Exception: one has failed.
    """
    try:
        MPI.Request.Waitall(requests)
    except MPI.Exception as error:
        if is_one(error):
            revoke()
            for request in requests:
                with contextlib.suppress(MPI.Exception):
                    request.Wait()
        raise


def revoke() -> None:
    """Have every call of every rank end, in which it may be waiting for a dead one."""
    for comm in (_world, *_used):
        if not comm.Is_revoked():
            comm.Revoke()


def agree(well: bool) -> bool:
    """Return whether all say that all is well, and none of them has died; all that are left call
    it.

    One that has died since the last agreement may have had a part in what this one is about that
    nobody waited for, such as writing it.
    """
    died = False
    while True:
        try:
            with agrees:
                found = _world.Agree(_WELL if well else _NOT_WELL)
        except MPI.Exception as error:  # on all of them alike, until all know of the dead
            if not is_one(error):
                raise
            died = True
            _world.Ack_failed()
            continue
        if found in (_WELL, _NOT_WELL):
            return found == _WELL and not died


def become(comm: Any) -> None:
    """Have a communicator be that of all ranks."""
    global _world
    _world = comm


def know(processes: list[int]) -> None:
    """Note the processes that the ranks on this host are, this one among them."""
    _here[:] = processes


def end_the_stopped() -> None:
    """Kill ranks of this host that are stopped (SIGSTOP): they cannot do it themselves."""
    import psutil

    for process in _here if are_survived else ():
        with contextlib.suppress(psutil.Error):
            if psutil.Process(process).status() == psutil.STATUS_STOPPED:
                os.kill(process, signal.SIGKILL)


def sweep() -> None:
    """Remove the shared memory of all ranks on this host: a job that does not leave MPI in order
    leaves it lying there. It is for the end, when nobody is to find it any more."""
    with contextlib.suppress(OSError):
        maps = Path("/proc/self/maps").read_text("utf-8", "replace")
        for name in {*re.findall(r"/\S*/sm_segment\.\S+", maps)}:
            with contextlib.suppress(OSError):  # another rank has
                Path(name).unlink()


def keep(ranks: int) -> bool:
    """Have the first ranks be the world, without the others; all call it.

    Returns:
        Whether this one is of them.
    """
    stays = _world.rank < ranks
    fewer = _world.Split(0 if stays else MPI.UNDEFINED, _world.rank)
    if not agree(True):  # else nobody leaves
        raise MPI.Exception(MPI.ERR_PROC_FAILED)
    if stays:
        become(fewer)
        _world.Set_errhandler(MPI.ERRORS_RETURN)
    return stays


def shrink() -> list[int]:
    """Have those that are left be the world, and return which of the ranks before are gone."""
    revoke()
    before = _world
    become(before.Shrink())
    _world.Set_errhandler(MPI.ERRORS_RETURN)
    left = _world.Get_group()
    there = MPI.Group.Translate_ranks(left, range(left.size), before.Get_group())
    return sorted({*range(before.size)} - {*there})
