"""`python -m lockstep.mpi script.py`: `python -m mpi4py`, and MPI is loaded before all else.

A rank that ends before it has loaded MPI is missed by nobody, where ranks are survived: the others
wait for it in MPI's beginning. And those that start a process for a running job wait until MPI is
there in it; until it has joined, its end is its own affair.
"""

import contextlib
import faulthandler
import sys

from lockstep import mpi

# Seconds that MPI may take to start, on all hosts: it waits for all ranks, and cannot be asked yet
# whether one has given up.
LONGEST_START = 600.0


def main() -> None:
    """Run a program."""
    faulthandler.dump_traceback_later(LONGEST_START, exit=True)
    mpi.load()
    faulthandler.cancel_dump_traceback_later()
    from mpi4py import MPI, run

    from lockstep.errors import say
    from lockstep.mpi import newcomers

    if newcomers.has_joined:
        # One rank alone would abort, and mpirun take no status from it.
        return run.main() if MPI.COMM_WORLD.size > 1 else run.run_command_line(sys.argv[1:])
    try:
        run.run_command_line(sys.argv[1:])
    except BaseException as error:
        if newcomers.has_joined:
            raise
        with contextlib.suppress(SystemExit):
            if not isinstance(error, SystemExit):
                sys.excepthook(type(error), error, error.__traceback__)
        say("a rank that was to join has failed; the others go on without it")
        newcomers.leave()
    if not newcomers.has_joined:
        newcomers.leave()


if __name__ == "__main__":
    main()
