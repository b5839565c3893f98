"""Work that goes on while the rank computes, and the order in which a group's is done.

A collective that is waited for at once is called where it is issued: a thread in between would cost
more than a small one takes. One with `async_op=True` goes to a thread of the group's, which does
blocking calls in the order of their issue. Each group has its own thread and its own communicator,
so that groups may be used in different orders on different ranks, as Gloo allows. MPI's own
nonblocking collectives took twice as long as the blocking ones from 64 KB on, and move on only
while somebody calls MPI.

Sends and receives are MPI's own requests, which match in any order. Open MPI moves large ones only
inside a call, so a thread looks after those that nobody waits for yet.
"""

import atexit
import threading
import time
from _thread import allocate_lock
from collections.abc import Callable
from datetime import timedelta
from queue import SimpleQueue
from typing import Any

import torch
import torch.distributed as dist
from mpi4py import MPI

from lockstep.errors import RanksLost
from lockstep.mpi import losses
from lockstep.mpi.watchdog import Watchdog

# torch says by a timeout of 0, or below, that it sets none.
NO_TIMEOUT = timedelta(0)
# Seconds between two looks at requests that nobody waits for.
LOOK_EVERY = 0.0005


class Done(dist._Work):
    """Work that was finished when it was issued. torch asks it for nothing but the wait."""

    def wait(self, timeout: timedelta | None = None) -> bool:
        return True

    def is_completed(self) -> bool:
        return True

    def is_success(self) -> bool:
        return True


DONE = Done()  # one for all: to make a new one takes as long as MPI does for a small message


class Unfinished(dist._Work):
    """Work that goes on elsewhere: `finish` is called there, once."""

    def __init__(self, tensors: Any) -> None:
        super().__init__()
        self.tensors = tensors
        self.error: BaseException | None = None
        self.completed = False
        self._running = allocate_lock()  # held until the work is finished
        self._running.acquire()
        self._guard = allocate_lock()
        self._begin: torch.futures.Future | None = None
        self._future: torch.futures.Future | None = None

    def finish(self, error: BaseException | None = None) -> None:
        """Say that the work has ended, well or by an error."""
        with self._guard:
            self.error = error
            self.completed = True
            begin = self._begin
        self._running.release()
        if begin is not None:
            # What hangs on the future may wait for other work of this very thread: PowerSGD does.
            threading.Thread(target=begin.set_result, args=(None,), name="callbacks").start()

    def wait(self, timeout: timedelta | None = None) -> bool:
        # Zero stands for "no other than the group's", which the watchdog keeps.
        limit = timeout.total_seconds() if timeout else 0.0
        if not self._running.acquire(timeout=limit if limit > 0 else -1):
            raise RuntimeError(f"mpi4py: the work was not done within {limit:g} s")
        self._running.release()
        if self.error is not None:
            raise self.error
        return True

    def is_completed(self) -> bool:
        return self.completed

    def is_success(self) -> bool:
        return self.completed and self.error is None

    def exception(self) -> BaseException | None:
        return self.error

    def result(self) -> Any:
        self.wait()
        return self.tensors

    def get_future(self) -> torch.futures.Future:
        with self._guard:
            if self._future is None:
                # Only a callback that raises gives a future an error that is one in C++ as well.
                self._begin = torch.futures.Future()
                self._future = self._begin.then(self._outcome)
                if self.completed:
                    self._begin.set_result(None)
            return self._future

    def _outcome(self, _: torch.futures.Future) -> Any:
        if self.error is not None:
            raise self.error
        return self.tensors


class Queue:
    """The collectives of a group, one after another."""

    def __init__(self, name: str, watchdog: Watchdog, timeout: float) -> None:
        self.name, self.watchdog, self.timeout = name, watchdog, timeout
        self._lock = allocate_lock()
        self._last = allocate_lock()  # the last work's, held until that is finished
        self._waiting: SimpleQueue[Any] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def run(
        self, what: str, call: Callable[[], None], tensors: Any, later: bool, limit: timedelta
    ) -> dist._Work:
        """Do a collective in its turn: now, or later in the group's thread.

        Args:
            what: its name, for messages.
            call: what to do; it blocks.
            tensors: what the work's future holds.
            later: whether to return before it is done.
            limit: after which the watchdog takes it for hung; none of its own if negative.
        """
        if later:
            with self._lock:  # not beside a call that another thread makes
                work = Unfinished(tensors)
                self._last = work._running  # not the work: its tensors would live on
                if self._thread is None:
                    self._thread = threading.Thread(target=self._work, name=self.name, daemon=True)
                    self._thread.start()
                self._waiting.put((what, call, work, limit))
            return work
        with self._lock:  # of several Python threads one is first
            if self._last.locked():  # what was issued before comes before
                self._last.acquire()
                self._last.release()
            self._do(what, call, limit)
        return DONE

    def _do(self, what: str, call: Callable[[], None], limit: timedelta) -> None:
        seconds = limit.total_seconds() if limit > NO_TIMEOUT else self.timeout
        self.watchdog.watch(what, self.name, seconds, call)

    def close(self) -> None:
        """Finish what was issued and end the thread."""
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        while (item := self._waiting.get()) is not None:
            what, call, work, limit = item
            error = None
            try:
                self._do(what, call, limit)
            except BaseException as caught:  # it belongs to whoever waits
                error = caught
            # Nothing of the work may live on in this frame while the thread waits for more.
            del item, call
            work.finish(error)
            del work, error


class Transfer(Unfinished):
    """A send or a receive under way: requests of MPI's, of which one thread at a time may ask."""

    def __init__(
        self, what: str, request: Any, tensors: Any, end: Callable[[Any], None], queue: Queue
    ) -> None:
        super().__init__(tensors)
        self.what, self.request, self.end, self.queue = what, request, end, queue
        self.source = MPI.ANY_SOURCE
        self._asking = allocate_lock()

    def wait(self, timeout: timedelta | None = None) -> bool:
        limit = timeout.total_seconds() if timeout else 0.0
        if limit > 0:
            deadline = time.monotonic() + limit
            while not self.poll():
                if time.monotonic() > deadline:
                    raise RuntimeError(f"mpi4py: {self.what} was not done within {limit:g} s")
                time.sleep(LOOK_EVERY / 10)
        elif not self.completed:
            queue = self.queue
            queue.watchdog.watch(self.what, queue.name, queue.timeout, self._finish)
        if self.error is not None:
            raise self.error
        return True

    def _finish(self) -> None:
        with self._asking:
            if not self.completed:
                self._ask(self.request.Wait)

    def poll(self) -> bool:
        """Return whether it is done, unless another thread is asking; never wait."""
        if not self.completed and self._asking.acquire(blocking=False):
            try:
                if not self.completed:
                    self._ask(self.request.Test)
            finally:
                self._asking.release()
        return self.completed

    def is_completed(self) -> bool:
        return self.poll()

    def _source_rank(self) -> int:
        return self.source

    source_rank = _source_rank

    def _ask(self, ask: Callable[[Any], bool]) -> None:
        status, error = MPI.Status(), None
        try:
            if not ask(status):
                return
            self.source = status.source
            self.end(status)
        except BaseException as caught:
            error = caught
            if isinstance(caught, MPI.Exception) and losses.is_one(caught):
                error = RanksLost(f"{self.what} on group {self.queue.name!r}: a rank has died")
        self.finish(error)


class Mover:
    """The thread that keeps transfers moving which nobody waits for."""

    def __init__(self) -> None:
        self._transfers: list[Transfer] = []
        self._some = threading.Event()
        self._asleep = True
        self._ended = False
        self._thread: threading.Thread | None = None

    def add(self, transfer: Transfer) -> None:
        """Look after a transfer until it is done."""
        self._transfers.append(transfer)
        if self._asleep:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="transfers", daemon=True)
                self._thread.start()
                atexit.register(self._end)
            self._some.set()

    def _work(self) -> None:
        idle = 0
        while not self._ended:
            # Waking a thread costs more than a small message: it sleeps soundly only after a while.
            if idle > 100:
                self._some.clear()
                self._asleep = True
                if not self._transfers and not self._ended:
                    self._some.wait()
                self._asleep, idle = False, 0
            time.sleep(LOOK_EVERY)
            for transfer in list(self._transfers):
                if transfer.poll():
                    self._transfers.remove(transfer)
            idle = 0 if self._transfers else idle + 1

    def _end(self) -> None:
        self._ended = True
        self._some.set()
        if self._thread is not None:
            self._thread.join()  # MPI must not be finalised under its call
