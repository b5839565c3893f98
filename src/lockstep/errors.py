"""What a person is meant to read: the one exception, what is quoted of others, and lines.

All of it goes to stderr.
"""

import argparse
import contextlib
import faulthandler
import re
import select
import signal
import sys
import tempfile
from typing import NoReturn


class UserError(Exception):
    """Something the user can mend: one line that says what, where, what was expected, what to do.

    The command line prints it without a traceback and exits with status 2.
    """

    def __str__(self) -> str:
        return " ".join(super().__str__().split())  # what a library said may be of several lines


class Interrupted(Exception):  # noqa: N818
    """A run was told to stop, and is saved; the command line exits with status 75 (EX_TEMPFAIL)."""

    def __init__(self, number: int, step: int) -> None:
        super().__init__(
            f"interrupted by {signal.Signals(number).name} after step {step}; it is saved, and the "
            f"same command goes on from there"
        )


class RanksLost(RuntimeError):  # noqa: N818
    """Ranks have died. Those that are left may go on, in a smaller world."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, as all of ours are."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def say(text: str) -> None:
    """Print a line for a person, at once; a log on a full disk is no reason to stop."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def nobody_reads(error: BaseException) -> bool:
    """Return whether an error is that who reads what is printed, such as `head`, has ended."""
    if not isinstance(error, BrokenPipeError):
        return False
    reader = select.poll()
    try:
        reader.register(sys.stdout.fileno(), 0)
        return any(events & select.POLLERR for _, events in reader.poll(0))
    except (OSError, ValueError):  # there is no file behind it
        return False


def print_stacks(title: str) -> None:
    """Print the stacks of all threads below a title, in one piece: other ranks print theirs."""
    try:
        with tempfile.TemporaryFile("w+") as stacks:
            faulthandler.dump_traceback(stacks)
            stacks.seek(0)
            text = f"{title}\n{stacks.read()}"
    except OSError:  # a full disk
        text = f"{title}\nthe stacks are not to be had: no temporary file can be written"
    with contextlib.suppress(OSError):  # a log on a full disk is no reason not to end
        print(text, file=sys.__stderr__, flush=True)


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its kind where it says nothing."""
    return (str(error) or type(error).__name__).splitlines()[0]


def in_words(value: object) -> str:
    """Return a value for a person: of a hash as much as tells it from another."""
    if value is None:
        return "not set"
    return re.sub(r"\b[0-9a-f]{16,}\b", lambda found: found[0][:12], str(value))


def in_one_line(error: BaseException) -> str:
    """Return what an error says, in one line: one of the system's as the file and what is wrong."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"  # a full disk, a folder that is read-only
    return first_line(error)
