"""How a rank ends: with one line and a status, and not without the others."""

import ctypes
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import NoReturn

from lockstep.errors import Interrupted, UserError, in_one_line, say

_PR_SET_PDEATHSIG, _PR_GET_PDEATHSIG = 1, 2


def bind_to_launcher() -> None:
    """Have the kernel kill this rank when its launcher ends: nobody else would.

    A launcher that has lost a host ends without its ranks; those may wait for that host's in a call
    that looks at nothing else. Linux alone has this.
    """
    set_death_signal(signal.SIGKILL)


def death_signal() -> int:
    """Return the signal that this process gets when the one that started it ends; 0: none."""
    number = ctypes.c_int(0)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_GET_PDEATHSIG, ctypes.byref(number))
    return number.value


def set_death_signal(number: int) -> None:
    """Set what `death_signal` returns."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def end(error: BaseException, who: str, rank: str | None) -> NoReturn:
    """Say in one line what ended this rank, and end with it: status 75 if it is to go on, else 2.

    Args:
        error: a UserError, an OSError, or an Interrupted.
        who: who speaks.
        rank: this rank's number; None: there is one process.
    """
    if isinstance(error, Interrupted):
        if rank in (None, "0"):
            say(f"{who}: {error}")
        leave(75, together=True)  # EX_TEMPFAIL
    if rank not in (None, "0"):
        time.sleep(1)  # what all ranks found, rank 0 alone says: its exit ends the others
    say(f"{who}: {in_one_line(error)}")
    if error.__cause__ is not None:  # the user's own code: where in it
        traceback.print_exception(error.__cause__)
    leave(2)


def leave(status: int, together: bool = False) -> NoReturn:
    """Exit, and see to it that the other ranks do: they may be waiting for this one.

    Args:
        status: the exit status.
        together: whether all of them leave by themselves, with the same one.
    """
    if "mpi4py.MPI" in sys.modules:
        from lockstep.mpi import losses, tells_of_the_dead

        several = losses.world().size > 1
        if several:
            time.sleep(0.3)  # or mpirun may end before it has passed on what was printed
        # Where ranks are survived, mpirun takes no status from several that abort, nor from one
        # that is left alone.
        if losses.is_last() or (together and tells_of_the_dead()):
            losses.sweep()
            sys.stdout.flush()
            os._exit(status)
        if several:
            losses.abort(status)
    sys.exit(status)


def depart(line: str) -> NoReturn:
    """Say a line and exit with status 0, while the other ranks go on."""
    say(line)
    sys.stdout.flush()
    os._exit(0)


def report_by_line(who: str, rank: str | None) -> None:
    """Have a UserError that nobody catches end this rank as `end` does: by an excepthook."""
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, stack: object) -> None:
        if isinstance(error, (UserError, Interrupted)):
            end(error, f"{who}{_line_of(error)}", rank)
        before(kind, error, stack)  # type: ignore[arg-type]

    sys.excepthook = hook


def _line_of(error: BaseException) -> str:
    """Return where in the user's own code an error came up: the last line that is not of a library.

    An optimizer's hook is called by torch, and that by the user.
    """
    libraries = (str(Path(__file__).parents[1]), "site-packages", "dist-packages", "<frozen")
    found = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        file = frame.f_code.co_filename
        if not any(library in file for library in libraries):
            is_script = frame.f_globals.get("__name__") == "__main__"
            found = f", line {line}" if is_script else f", {Path(file).name}, line {line}"
    return "" if isinstance(error, Interrupted) else found
