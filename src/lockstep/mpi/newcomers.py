"""Ranks that come to a job that runs: MPI starts processes, which join when they are ready.

It takes MPI a tenth of a second to start them, and them seconds to load what they need: so the
others go on meanwhile, and have them join between two steps. Until then each is a world of one, and
leaves without a word to mpirun where it has no others to join any more. Where one of the ranks dies
that have started them they are of no use: their line to it is broken.
"""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Mapping
from typing import Any, NoReturn

from mpi4py import MPI

from lockstep.errors import say
from lockstep.mpi import JOINS, losses

# Seconds between two looks at what the others say.
LOOK_EVERY = 0.01
# Bytes that a newcomer says of itself at most: mpi4py would make room for 32 KiB, which a run with
# many files, or a long configuration, exceeds.
_LONGEST = 2**22
# Tags on the line between newcomers and the others, and on the communicator of all.
_READY, _COME, _WELCOME = 1, 2, 2**15 - 2

has_joined = JOINS not in os.environ
"""Whether this process is a rank of its job: from its start, or since it has joined."""

_line: Any = None
if not has_joined:
    _line = MPI.Comm.Get_parent()
    _line.Set_errhandler(MPI.ERRORS_RETURN)
    losses.become(MPI.COMM_SELF)


class Newcomers:
    """Processes that have been started and are no ranks yet, as each rank holds them."""

    def __init__(self, line: Any) -> None:
        self.line, self.count = line, line.remote_size
        asks = losses.world().rank == 0
        self._words = [
            line.irecv(bytearray(_LONGEST), source=i, tag=_READY) for i in range(self.count) if asks
        ]
        self._said: list[Any] = []

    def said(self) -> list[Any]:
        """Return on rank 0 what those say of themselves that are ready.

        Raises:
            MPI.Exception: one has died.
        """
        found = [word.test() for word in self._words]
        self._words = [
            word for word, (there, _) in zip(self._words, found, strict=True) if not there
        ]
        self._said += [said for there, said in found if there]
        return self._said

    def dismiss(self) -> None:
        """Have them leave; all ranks call it."""
        with contextlib.suppress(MPI.Exception):
            self.line.Revoke()


def start(count: int, variables: Mapping[str, str]) -> Newcomers | None:
    """Start processes by the words that have started this one; all ranks call it.

    Args:
        count: how many.
        variables: of the environment, that they are to have as this one has them.

    Returns:
        None where they cannot be started, or a rank has died meanwhile; rank 0 says why.
    """
    world, line, problem = losses.world(), None, ""
    # By `env`: MPI takes no variables that are longer than 255 characters.
    given = [f"{name}={value}" for name, value in {**variables, JOINS: "1"}.items()]
    words = [*given, sys.executable, "-m", "lockstep.mpi", *_program()]
    try:
        line = world.Spawn("env", args=words, maxprocs=count)
        line.Set_errhandler(MPI.ERRORS_RETURN)
    except MPI.Exception as error:
        problem = str(error)
    if losses.agree(line is not None):
        return Newcomers(line)
    if world.rank == 0 and not losses.dead():
        say(f"no rank can be started: {problem}; are there slots for {world.size + count}?")
    return None


def take_in(newcomers: Newcomers) -> bool:
    """Have newcomers that are ready be the last ranks; all ranks call it.

    Returns:
        Whether they are, on all of them; else one of them, or a rank, has died meanwhile.
    """
    world, more = losses.world(), None
    try:
        for i in range(newcomers.count if world.rank == 0 else 0):
            newcomers.line.isend(None, i, _COME)
        more = newcomers.line.Merge(high=False)
        more.Set_errhandler(MPI.ERRORS_RETURN)
    except MPI.Exception as error:
        if not losses.is_one(error):
            raise
    if not losses.agree(more is not None) or more is None:
        if more is not None:
            more.Revoke()
        newcomers.dismiss()
        return False
    losses.become(more)
    for rank in range(world.size, more.size) if world.rank == 0 else ():
        more.isend(None, rank, _WELCOME)
    return True


# On a newcomer.


def others() -> int:
    """Return how many ranks this process is to join; 0: it is one of them."""
    return 0 if has_joined else _line.remote_size


def join(word: Any) -> None:
    """Tell the others that this process is ready, and wait to be one of them."""
    global has_joined
    try:
        sent = _line.isend(word, 0, _READY)
        _wait_for(_line, _COME)
        sent.wait()  # until here the request holds what is sent, where that is long
        world = _line.Merge(high=True)
        world.Set_errhandler(MPI.ERRORS_RETURN)
        _wait_for(world, _WELCOME)
    except MPI.Exception as error:
        if losses.is_one(error):
            leave()
        raise
    losses.become(world)
    has_joined = True


def _wait_for(comm: Any, tag: int) -> None:
    """Wait for rank 0's message, and leave the core to others meanwhile."""
    while not comm.iprobe(source=0, tag=tag):
        time.sleep(LOOK_EVERY)
    comm.recv(source=0, tag=tag)


def leave() -> NoReturn:
    """End at once: by a signal, which MPI tells of, and which counts for nothing in its status."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os.kill(os.getpid(), signal.SIGKILL)
    raise SystemExit  # for the type checker


def _program() -> list[str]:
    """Return what this process runs, and its arguments, as Python's command line has them."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    module = ["-m", spec.name.removesuffix(".__main__")] if spec else [sys.argv[0]]
    return [*module, *sys.argv[1:]]
