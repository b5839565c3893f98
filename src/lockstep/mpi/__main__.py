"""What `newcomers.start` starts: a program in a process that is to join a job.

MPI first: those that start it wait until it is there.
"""

import contextlib
import sys

from lockstep import mpi


def main() -> None:
    """Run a program; until it has joined, its end is its own affair."""
    mpi.load()
    from mpi4py import run

    from lockstep.errors import say
    from lockstep.mpi import newcomers

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
