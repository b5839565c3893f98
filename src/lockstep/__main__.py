"""Some words are the library's (`lockstep launch`, `stop`, `verify`); any other is a stage's.

The pipeline has libraries of its own, and `pip install lockstep` alone brings none of them.
"""

import importlib
import os
import signal
import sys

from lockstep.errors import UserError, in_one_line, nobody_reads, say

OF_THE_LIBRARY = {
    "grow": "lockstep.checkpoint.ask",
    "launch": "lockstep.distributed.launcher",
    "shrink": "lockstep.checkpoint.ask",
    "stop": "lockstep.checkpoint.ask",
    "verify": "lockstep.testing.verify",
}


def main() -> None:
    """Run what the command line names: the command `lockstep`, and `python -m lockstep`.

    Where who reads what is printed has ended (`| head`), it ends quietly, as other tools do.
    """
    try:
        try:
            _run()
        finally:
            if sys.stdout:  # a shell may have closed it
                sys.stdout.flush()
    except OSError as error:
        is_quiet = nobody_reads(error)
        # Or Python would try again when it exits, and print what is wrong in its own way.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if is_quiet:
            sys.exit(128 + signal.SIGPIPE)  # what a shell says of who has died of it
        say(f"lockstep: standard output: {in_one_line(error)}")
        sys.exit(2)


def _run() -> None:
    if module := OF_THE_LIBRARY.get(word := " ".join(sys.argv[1:2])):
        try:
            importlib.import_module(module).main(word, sys.argv[2:])
        except (UserError, OSError) as error:
            if nobody_reads(error):
                raise
            say(f"lockstep {word}: {in_one_line(error)}")
            sys.exit(2)
        return
    try:
        from lockstep.pipeline import cli

        cli.main()
    except ModuleNotFoundError as error:
        if (error.name or "lockstep").partition(".")[0] == "lockstep":
            raise
        print(
            f"lockstep: {error.name} is missing, which the pipeline needs; "
            f"pip install 'lockstep[pipeline]'",
            file=sys.stderr,
        )
        sys.exit(2)


if __name__ == "__main__":
    main()
