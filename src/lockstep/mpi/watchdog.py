"""Ranks that fail or hang: the others learn of it, all say where they are, and the job ends.

MPI has no way to take back a call that another rank does not answer. A thread on each rank watches
the calls that this rank is in; `world` starts it before the first. When one has lasted longer than
its group allows, the rank tells the others, every rank prints the stacks of its threads, and MPI
ends the job. Where the others go on without the dead (`losses`), the rank that is in no call kills
itself instead: it is the one that they wait for. A rank that an exception ends which nobody caught
takes the others with it at once: they would wait for it. When the last group is left, the thread
ends.
"""

import atexit
import contextlib
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

from mpi4py import MPI

from lockstep.errors import RanksLost, UserError, print_stacks
from lockstep.mpi import losses

# Seconds that ranks have for printing before the job ends.
FAREWELL = 2.0
# Seconds between two looks whether a call has ended.
LOOK_EVERY = 0.05
# The tag by which ranks tell each other, on COMM_WORLD: a communicator for it could only be made by
# all ranks at once, and a first group may be one of some of them.
ALARM = 2**15 - 1

_T = TypeVar("_T")
_Call = tuple[str, str, float, float]

_started: "Watchdog | None" = None


def start() -> "Watchdog":
    """Return the process's watchdog, which watches from the first time on.

    Raises:
        UserError: no thread may call MPI beside another.
    """
    global _started
    if MPI.Query_thread() != MPI.THREAD_MULTIPLE:
        raise UserError(
            "mpi4py: MPI was initialised without MPI_THREAD_MULTIPLE, which the watchdog and the "
            "backend need; leave mpi4py.rc.thread_level as it is, or take an MPI that has it"
        )
    if _started is None:
        _started = Watchdog()
    return _started


def stop() -> None:
    """Watch no more: what was set for it in the process is set back."""
    global _started
    if _started is not None:
        _started.stop()
        _started = None


class Watchdog:
    """Watches a process's calls, and ends the job when it must; one for a process."""

    def __init__(self) -> None:
        self._calls: dict[int, _Call] = {}
        self._period = 1.0
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()
        atexit.register(self._leave)
        self._hook_before = sys.excepthook
        sys.excepthook = self._report

    def watch(self, what: str, group: str, limit: float, call: Callable[[], _T]) -> _T:
        """Make a call, and end the job if it lasts too long.

        No context manager, because a small call takes less than that. A watched call makes no
        other: a thread is in one at a time.

        Args:
            what: its name, for messages.
            group: the name of the group whose ranks make it.
            limit: the seconds it may last.
            call: what to do; it blocks.

        Returns:
            What the call returns.

        Raises:
            RanksLost: it needs a rank that has died.
        """
        thread = threading.get_ident()
        self._calls[thread] = (what, group, limit, time.monotonic())
        try:
            return call()
        except MPI.Exception as error:
            if losses.is_one(error):
                raise RanksLost(f"{what} on group {group!r}: a rank has died") from None
            raise
        finally:
            del self._calls[thread]

    def expect(self, timeout: float) -> None:
        """Look often enough to notice a call that is late after `timeout` seconds."""
        self._period = min(self._period, max(0.05, timeout / 10))

    def stop(self) -> None:
        """End the thread, and leave exceptions to whoever had them before."""
        atexit.unregister(self._leave)
        self._leave()
        if sys.excepthook == self._report:
            sys.excepthook = self._hook_before

    def _watch(self) -> None:
        while not self._leaving.wait(self._period):
            if why := self._alarm():
                self._say(why)
                if losses.are_survived and not self._calls:  # the others wait for this one
                    os.kill(os.getpid(), signal.SIGKILL)
                if not self._ends(5 * FAREWELL):  # that rank may have died in between
                    MPI.COMM_WORLD.Abort(1)
                continue
            now = time.monotonic()
            for what, group, limit, since in list(self._calls.values()):
                if now - since > limit:
                    self._say(f"{what} on group {group!r} was not answered within {limit:g} s")
                    self._tell_all()
                    if not (losses.are_survived and self._ends(5 * FAREWELL)):
                        time.sleep(FAREWELL)
                        MPI.COMM_WORLD.Abort(1)
                    break

    def _ends(self, seconds: float) -> bool:
        """Return whether the watch ends, or the calls that last too long do, within some time.

        Where ranks are survived, one that hangs ends itself, and those that wait for it go on. Or
        it was late, and has come: then what others have said meanwhile is of the past.
        """
        calls, until = [*self._calls.values()], time.monotonic() + seconds
        while time.monotonic() < until:
            if self._leaving.wait(LOOK_EVERY):
                return True
            if losses.are_survived and not {*calls} & {*self._calls.values()}:
                self._leaving.wait(FAREWELL)
                while self._alarm():
                    pass
                return True
        return False

    def _alarm(self) -> str:
        """Return why the job must end, as the others have it, or nothing."""
        comm = losses.world()
        try:
            if told := comm.Iprobe(MPI.ANY_SOURCE, ALARM):
                comm.Recv([None, 0, MPI.BYTE], MPI.ANY_SOURCE, ALARM)
        except MPI.Exception as error:
            if not losses.is_one(error):
                raise
            if losses.are_survived or not (dead := losses.dead()):
                return ""
            return f"rank {', '.join(map(str, dead))} has died"
        return "another rank has failed, or waits in vain" if told else ""

    def _tell_all(self) -> None:
        # Not waited for: the receiver may be past reading, and empty messages need no buffer.
        comm = losses.world()
        for rank in range(comm.size):
            if rank != comm.rank:
                with contextlib.suppress(MPI.Exception):  # it may be dead
                    comm.Isend([None, 0, MPI.BYTE], rank, ALARM).Free()

    def _say(self, why: str) -> None:
        """Print why the job ends, what this rank is in, and the stacks of its threads, as one."""
        where = " and ".join(what for what, *_ in list(self._calls.values()))
        inside = f"in {where}" if where else "in no communication over MPI: it may be what hangs"
        print_stacks(f"{self._who()}: {why}; this rank is {inside}")

    def _report(
        self, kind: type[BaseException], error: BaseException, stack: TracebackType | None
    ) -> None:
        """End the job by an exception that nobody caught: an excepthook."""
        if self._leaving.is_set():  # stopped, and another hook still calls this one
            return self._hook_before(kind, error, stack)
        text = "".join(traceback.format_exception(kind, error, stack))  # whole, not line by line
        all_end = losses.world().size > 1 and not MPI.Is_finalized()
        if all_end:
            summary = traceback.format_exception_only(kind, error)[-1].strip()
            text += f"{self._who()}: {summary}; ending all ranks\n"
        with contextlib.suppress(OSError):  # a log on a full disk
            print(text, end="", file=sys.__stderr__, flush=True)
        if all_end:
            self._tell_all()
            time.sleep(FAREWELL)
            MPI.COMM_WORLD.Abort(1)

    def _who(self) -> str:
        comm = losses.world()
        place = f"rank {comm.rank} of {comm.size}"
        return f"{place} ({socket.gethostname()}, process {os.getpid()})"

    def _leave(self) -> None:
        self._leaving.set()
        self._thread.join()  # MPI must not be finalised under its call


class Watched:
    """A communicator whose calls are watched.

    Args:
        comm: mpi4py's.
        group: its name, for messages.
        limit: the seconds that a call may last.
    """

    def __init__(self, comm: Any, group: str, limit: float) -> None:
        self._comm, self._group, self._limit = comm, group, limit
        self._watchdog = start()
        self._watchdog.expect(limit)

    def longer(self, seconds: float) -> "Watched":
        """Return the same communicator, whose calls may last so much longer."""
        return Watched(self._comm, self._group, self._limit + seconds)

    def watch(self, what: str, call: Callable[[], _T]) -> _T:
        """Make a call that is none of the communicator's own; all ranks make it."""
        return self._watchdog.watch(what, self._group, self._limit, call)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._comm, name)
        if not callable(found):
            return found

        def call(*args: Any, **more: Any) -> Any:
            return self._watchdog.watch(
                name, self._group, self._limit, lambda: found(*args, **more)
            )

        return call
