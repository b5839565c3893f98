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
from lockstep.mpi import losses, tells_of_the_dead

# Seconds that ranks have for printing before the job ends.
FAREWELL = 2.0
# Seconds between two looks whether a call has ended.
LOOK_EVERY = 0.05
# The tag by which ranks tell each other, on the world: a communicator for it could only be made by
# all ranks at once, and a first group may be one of some of them.
WORD = 2**15 - 1
# What they tell: that they wait in vain, that they end the job, or, else, where in the code they
# fail, so that they end and the others go on.
LATE, END = "late", "end"
# Seconds in which the others have heard that a rank fails, and it has heard whether they do.
HEARD_WITHIN = 0.2
# How often ranks may fail by an exception in one place: a defect is no fault that others survive.
MOST_FAILURES = 3

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
        self._failing: set[int] = set()
        self._ends_all = False
        # Those that fail tell the others, who are to hear it.
        self._period = LOOK_EVERY if tells_of_the_dead() else 1.0
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
            word = "" if self._ends_all else self._hear()
            if word:
                self._say(word)
                if losses.are_survived and word == LATE and not self._calls:
                    os.kill(os.getpid(), signal.SIGKILL)  # the others wait for this one
                # Whoever has said so may have died in between.
                if not self._ends(10 * FAREWELL, word):
                    losses.abort(1)
                continue
            now = time.monotonic()
            for what, group, limit, since in list(self._calls.values()):
                if now - since > limit:
                    self._say(f"{what} on group {group!r} was not answered within {limit:g} s")
                    self._tell(LATE)
                    if not (losses.are_survived and self._ends(5 * FAREWELL, LATE)):
                        if losses.are_survived and losses.dead():
                            # MPI does not give this rank back, for another has died in its call.
                            os.kill(os.getpid(), signal.SIGKILL)
                        time.sleep(FAREWELL)
                        losses.abort(1)
                    break

    def _ends(self, seconds: float, word: str) -> bool:
        """Return whether the watch ends, or the calls that last too long do, within some time.

        Where ranks are survived, one that hangs ends itself, or is ended, and those that wait for
        it go on. Or it was late, and has come: then what others have said meanwhile is of the past.
        """
        calls, until = [*self._calls.values()], time.monotonic() + seconds
        while time.monotonic() < until:
            if self._leaving.wait(LOOK_EVERY):
                return True
            if losses.are_survived and word == LATE:
                losses.end_the_stopped()
                if not {*calls} & {*self._calls.values()}:
                    self._leaving.wait(FAREWELL)
                    while self._hear():
                        pass
                    return True
        return False

    def _hear(self) -> str:
        """Return whether others wait in vain (LATE) or end the job (END, or who has died); note
        where they fail."""
        comm, status, found = losses.world(), MPI.Status(), ""
        if not losses.agrees.acquire(blocking=False):
            return ""
        try:
            while comm.Iprobe(MPI.ANY_SOURCE, WORD, status):
                text = bytearray(status.Get_count(MPI.BYTE))
                comm.Recv([text, MPI.BYTE], status.Get_source(), WORD)
                word = text.decode()
                if word in (LATE, END):
                    found = word
                else:
                    losses.failed[word] = losses.failed.get(word, 0) + 1
                    self._failing.add(status.Get_source())
        except MPI.Exception as error:
            if not losses.is_one(error):
                raise
            if not (losses.are_survived or losses.is_over) and (dead := losses.dead()):
                return f"rank {', '.join(map(str, dead))} has died"
        finally:
            losses.agrees.release()
        return found

    def _tell(self, word: str) -> None:
        # Not waited for: the receiver may be past reading. So short a text is sent at once.
        comm, self._told = losses.world(), word.encode()
        for rank in range(comm.size):
            if rank != comm.rank:
                with contextlib.suppress(MPI.Exception):  # it may be dead
                    comm.Isend([self._told, MPI.BYTE], rank, WORD).Free()

    def _say(self, why: str) -> None:
        """Print why the job ends, what this rank is in, and the stacks of its threads, as one."""
        why = {LATE: "another rank waits in vain", END: "another rank has failed"}.get(why, why)
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
        several = losses.world().size > 1 and not MPI.Is_finalized()
        alone = several and losses.are_survived and self._is_alone_in(error, _place(stack))
        if several:
            summary = traceback.format_exception_only(kind, error)[-1].strip()
            end = "it ends, and the others go on" if alone else "ending all ranks"
            text += f"{self._who()}: {summary}; {end}\n"
        with contextlib.suppress(OSError):  # a log on a full disk
            print(text, end="", file=sys.__stderr__, flush=True)
        if alone:
            os.kill(os.getpid(), signal.SIGKILL)
        if several:
            self._ends_all = True
            self._tell(END)
            time.sleep(FAREWELL)
            losses.abort(1)
        if losses.is_last():
            os._exit(1)

    def _is_alone_in(self, error: BaseException, place: str) -> bool:
        """Return whether the others can go on without a rank that an error ends.

        They cannot where others end by it, too, or have: a defect is no fault.
        """
        if not isinstance(error, Exception) or isinstance(error, RanksLost):
            return False
        self._tell(place)
        time.sleep(HEARD_WITHIN)
        often = losses.failed.get(place, 0) + 1
        gone = {*self._failing, *losses.dead()}
        return often < MOST_FAILURES and len(gone) + 1 < losses.world().size

    def _who(self) -> str:
        comm = losses.world()
        place = f"rank {comm.rank} of {comm.size}"
        return f"{place} ({socket.gethostname()}, process {os.getpid()})"

    def _leave(self) -> None:
        self._leaving.set()
        self._thread.join()  # MPI must not be finalised under its call


def _place(stack: TracebackType | None) -> str:
    """Return where in the code an exception came up."""
    frames = traceback.extract_tb(stack)
    return f"{frames[-1].filename}:{frames[-1].lineno}"[-200:] if frames else ""


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

    def within(self, seconds: float) -> "Watched":
        """Return the same communicator, whose calls may last so long at most."""
        return Watched(self._comm, self._group, min(self._limit, seconds))

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
