"""The prologue of everything that ranks do together, and its end.

A session finds out which rank this is, compares what ranks are about to compute with, chooses a
device, sets threads and arithmetic, and has the ranks meet. What it sets in the process, it sets
back at its end: signal handlers, the number of threads, deterministic kernels, the process group,
variables of the environment. What glibc keeps of freed memory alone stays (`lockstep.memory`).
"""

import atexit
import contextlib
import os
import platform
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from lockstep import determinism, memory
from lockstep.checkpoint.agreement import check_same, gather
from lockstep.distributed import devices, elastic, ending, rendezvous
from lockstep.distributed.signals import Interrupt, name_of
from lockstep.distributed.world import TIMEOUT, discover
from lockstep.errors import Interrupted, UserError, say
from lockstep.mpi import tells_of_the_dead


class Session:
    """This process as one of the ranks of a launch.

    Args:
        ranks: how many there must be; None takes as many as there are.
        threads: of each rank. Sums inside a kernel are split among them: the bits depend on it.
        device: `auto` (GPUs where every rank has one of its own, else CPUs), `cpu` or `cuda`.
        backend: what carries tensors: `auto`, `mpi4py`, `gloo`, `nccl`.
        init_method: how ranks meet: see `rendezvous.start`.
        timeout: the seconds that ranks wait for one another before the job is ended.
        oversubscribe: whether there may be more ranks x threads than cores.
        reproducible: whether kernels that give other bits from call to call are refused.
        same: what else all ranks must have alike, by the names in `agreement.CURES`.
        saves: whether SIGUSR1 and SIGTERM are noted, for the ranks to save and stop; where there
            is nothing to save, they end a rank at once.

    Raises:
        UserError: the launch cannot be used so; the line says why.
    """

    def __init__(
        self,
        ranks: int | None = None,
        threads: int = 1,
        device: str = "auto",
        backend: str = "auto",
        init_method: str = "auto",
        timeout: float = TIMEOUT,
        oversubscribe: bool = True,
        reproducible: bool = True,
        same: Mapping[str, Any] | None = None,
        saves: bool = True,
    ) -> None:
        self._stack = contextlib.ExitStack()
        self._told: dict[str, str] | None = None
        hook_before = sys.excepthook
        with self._stack:
            self._stack.callback(self._restore_environment, dict(os.environ))
            self._stack.callback(ending.set_death_signal, ending.death_signal())
            self.world = discover(ranks, timeout)
            self.interrupt = Interrupt(name_of(self.world))
            if saves:
                self._stack.enter_context(self.interrupt)
            # Where a host has its data is its own affair, and so is what does not compute.
            self.same = {"versions": {"python": platform.python_version()}, **(same or {})}
            if self.world.comm is not None:  # at once: with other flags, they may not even meet
                check_same(self.same, self.world.comm.allgather)
            # Ranks come and go where they compute on CPUs.
            wanted = "cpu" if self.world.ahead else device
            self.device = devices.choose_device(self.world, wanted)
            if not oversubscribe:
                devices.check_cores(self.world, threads)
            self._stack.callback(determinism.pin(threads, self.device, reproducible))
            memory.keep_freed()
            self.backend = rendezvous.start(self.world, self.device, backend, init_method)
            # What is changed from here on is the user's affair.
            self._told, self._hooks = dict(os.environ), (hook_before, sys.excepthook)
            self._stack = self._stack.pop_all()

    def _restore_environment(self, before: dict[str, str]) -> None:
        for name, value in (self._told or dict(os.environ)).items():
            if name not in before:
                os.environ.pop(name, None)
            elif before[name] != value:
                os.environ[name] = before[name]

    def check_same(self, problem: str = "", **more: Any) -> None:
        """Compare with all ranks what this one computes with; all call it together.

        Args:
            problem: what this rank alone has found wrong, if something is.
            more: what has been added since the session began.

        Raises:
            UserError: on all ranks: one has a problem, or something is not the same.
        """
        self.same |= more
        check_same(self.same, gather, problem)
        self.places = gather(devices.describe(self.world, self.device))
        if self.world.rank == 0 and (kinds := devices.unlike(self.places)):
            say(f"ranks compute in {kinds}: the bits depend on which rank is where")

    def mend(self) -> tuple[list[str], float]:
        """Go on with the ranks that are left; all of them call it.

        Returns:
            Which ranks are gone, for a person, and the seconds that it took.
        """
        before = self.places
        gone, seconds = elastic.mend(self.world)
        self._find_places()
        return [f"rank {rank} ({before[rank]['host']})" for rank in gone], seconds

    def regroup(self) -> None:
        """Go on with the ranks that MPI has now; all of them call it."""
        rendezvous.leave()
        elastic.meet(self.world)
        self.world.ahead = 0
        self._find_places()

    def _find_places(self) -> None:
        self.interrupt.who = name_of(self.world)
        self.places = gather(devices.describe(self.world, self.device))

    def close(self) -> None:
        """Leave the others together: only when all got here, what was computed counts."""
        rendezvous.stop()
        self._sweep_at_exit()

    def _sweep_at_exit(self) -> None:
        if self.world.comm is not None and tells_of_the_dead():
            from lockstep.mpi import losses

            atexit.register(losses.sweep)

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._stack:
            if error is None:
                rendezvous.stop_if_started()
                self._sweep_at_exit()
                self._stop_watching()
            elif self.world.comm is None or (self.world.size == 1 and not self.world.survives):
                rendezvous.leave()  # else MPI ends a job that does not get to `stop`
                if not isinstance(error, UserError | Interrupted):  # these are said by the hook
                    self._stop_watching()

    def _stop_watching(self) -> None:
        """End the watchdog: ranks that go on alone have nobody to wait for."""
        if sys.excepthook == self._hooks[1]:  # torch's, before which is the watchdog's
            sys.excepthook = self._hooks[0]
        if "lockstep.mpi.watchdog" in sys.modules:
            from lockstep.mpi import watchdog

            watchdog.stop()
