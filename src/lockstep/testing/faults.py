"""Faults on demand, for tests: LOCKSTEP_FAULT=point:number:rank:action,...

    LOCKSTEP_FAULT=step:7:1:kill       rank 1 is killed before the 8th step
    LOCKSTEP_FAULT=renamed:12:0:kill   rank 0 is, just after the checkpoint of step 12 has its name

Without the variable a point is a look at an empty string. The points are `step` (so many steps are
done), `validation` (inside that after so many epochs), `snapshot` (before the weights of an epoch
are written, when there are so many), and `written`, `synced`, `renamed` (inside the writing of the
checkpoint of a step).
"""

import os
import random
import signal
import threading
import time

from lockstep.errors import say

# Seconds within which `kill-later` kills.
LATER = 0.008


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _kill_later() -> None:
    """Be killed within some milliseconds, wherever that is: the process does not wait for it."""
    threading.Timer(random.uniform(0, LATER), _kill).start()  # noqa: S311


def _kill_launcher() -> None:
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(3600)


def _fail() -> None:
    raise RuntimeError("a fault on demand")


def _be_interrupted() -> None:
    os.kill(os.getpid(), signal.SIGUSR1)


ACTIONS = {
    "kill": _kill,
    "kill-later": _kill_later,
    "kill-launcher": _kill_launcher,
    "raise": _fail,
    "exit": lambda: os._exit(0),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "hang": lambda: time.sleep(3600),
    "slow": lambda: time.sleep(3),
    "usr1": _be_interrupted,
}


WANTED = os.environ.get("LOCKSTEP_FAULT", "")

# Whether new memory is filled with NaN, so that what is read before it was written shows.
POISON = False


def point(name: str, number: int) -> None:
    """Have the faults that are asked for at this place, on this rank."""
    if WANTED:
        # As MPI numbered it first: the number changes where others have died. One that has come to
        # a running job is +.
        first = os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("RANK", "0"))
        rank = "+" if "LOCKSTEP_JOINS" in os.environ else first
        here = f"{name}:{number}:{rank}:"
        for fault in WANTED.split(","):
            if fault.startswith(here):
                say(f"fault: {fault}")
                ACTIONS[fault.removeprefix(here)]()
