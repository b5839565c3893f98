"""Being told to stop: a signal sets a flag, and all ranks stop after the same step.

mpirun and srun hand SIGUSR1 on to every rank; schedulers send SIGTERM a while before SIGKILL.
Nothing is done in the handler itself: it may run in the middle of anything.
"""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist

from lockstep.distributed.world import World
from lockstep.errors import print_stacks

SIGNALS = (signal.SIGUSR1, signal.SIGTERM)

# Seconds between two agreements, about: a step may take longer.
LOOK_EVERY = 0.5

# Seconds that the main thread has to answer SIGTERM before the stacks are printed: mpirun kills
# what is left of a job a quarter of a second after it has sent it.
ANSWER_WITHIN = 0.1


class Interrupt:
    """The last of the signals that came while the context lasted: 0, or its number.

    Where the main thread does not answer SIGTERM, because it waits in vain for a rank that is dead,
    or hangs, another thread prints the stacks of all.
    """

    def __init__(self, who: str) -> None:
        self.who, self.signal = who, 0

    def __enter__(self) -> "Interrupt":
        self._before: dict[int, Any] = {number: signal.getsignal(number) for number in SIGNALS}
        reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._wakeup_before = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        threading.Thread(target=self._listen, args=(reading,), name="signals", daemon=True).start()
        for number in SIGNALS:
            signal.signal(number, self._note)
        # The command line had them wait.
        self._waited = signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS) & set(SIGNALS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, self._waited)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._writing)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.signal = number

    def _listen(self, reading: int) -> None:
        while got := os.read(reading, 1):
            if got[0] == signal.SIGTERM:
                time.sleep(ANSWER_WITHIN)
                if self.signal != signal.SIGTERM:
                    print_stacks(f"{self.who}: ended by SIGTERM while it was here:")
        os.close(reading)


class Agreement:
    """Decisions that all ranks take after the same step: to stop, to save, and to be others.

    A signal reaches ranks at different times, and of the clocks only rank 0's counts. So they ask
    one another now and then, by an all_reduce of four numbers, about every LOOK_EVERY seconds:
    rank 0 says after how many steps it will be the next time.

    Args:
        due: asked on rank 0 alone: whether something is to be done by the clock.
        told: asked on rank 0 alone: whether somebody has told it to stop by other means.

    Attributes:
        changes: asked on rank 0 alone: whether ranks are to come or to leave.
    """

    def __init__(
        self,
        world: World,
        interrupt: Interrupt,
        due: Callable[[], bool],
        told: Callable[[], bool] = bool,
    ) -> None:
        self.world, self.interrupt, self.due, self.told = world, interrupt, due, told
        self.changes: Callable[[], bool] = bool
        self._next = 0
        self._steps = 1
        self._since = time.monotonic()

    def after(self, step: int) -> tuple[int, bool, bool]:
        """Return the signal that some rank has received (or 0), whether something is due, and
        whether the ranks are to change."""
        if step < self._next:
            return 0, False, False
        mine = torch.zeros(4, dtype=torch.int64)
        mine[0] = self.interrupt.signal
        if self.world.rank == 0:
            if self.told():
                mine[0] = signal.SIGUSR1
            mine[1] = self.due()
            mine[2] = self._steps = self._until_next()
            mine[3] = self.changes()
        if self.world.size > 1:
            dist.all_reduce(mine, dist.ReduceOp.MAX)
        number, due, steps, changes = mine.tolist()
        self._next = step + steps
        return number, bool(due), bool(changes)

    def ask_soon(self) -> None:
        """Have all ranks ask after the next step."""
        self._next = 0

    def _until_next(self) -> int:
        now = time.monotonic()
        rate = self._steps / max(now - self._since, 1e-6)
        self._since = now
        return max(1, min(round(rate * LOOK_EVERY), 4 * self._steps))


def name_of(world: World) -> str:
    """Return how a rank calls itself in a log: its number, how many there are, its host."""
    return f"rank {world.rank} of {world.size} on {socket.gethostname()}"
