"""Ranks that die while others go on: what they do together counts, or is done again without them.

Every rank that trains has the whole state of the run. So where one has died, those that are left
need nothing from it: they agree that what they were about to do together has not been done, become
a smaller world, and do it again. MPI alone tells of the dead (`lockstep.mpi.losses`); elsewhere a
death ends the job, as it ends everything that a strategy does which keeps a part of the state on
one rank alone.
"""

import sys
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from lockstep.distributed import rendezvous
from lockstep.distributed.world import BETWEEN_HOSTS, World, take_place
from lockstep.errors import RanksLost

T = TypeVar("T")


def survive(world: World, backend: str) -> None:
    """Have the ranks go on when some of them die, from here on, if that can be."""
    if world.comm is None or backend != "mpi4py":
        return
    from lockstep.mpi import losses, tells_of_the_dead

    world.survives = losses.are_survived = tells_of_the_dead()


def end_with_the_first(world: World) -> None:
    """Have a death end the job again."""
    if world.survives:
        from lockstep.mpi import losses

        world.survives = losses.are_survived = False


def failures() -> dict[str, int]:
    """Return how often ranks have failed so far by an exception, by its place."""
    if "lockstep.mpi.losses" not in sys.modules:
        return {}
    from lockstep.mpi import losses

    return losses.failed


def note_failures(everyones: Iterable[dict[str, int]]) -> None:
    """Take on what ranks know of failures: none of them may have heard of all."""
    mine = failures()
    for found in everyones:
        for place, count in found.items():
            mine[place] = max(count, mine.get(place, 0))


def together(world: World, call: Callable[[], T]) -> T:
    """Return what a call returns that all ranks make together, if it was one of all that are left.

    Args:
        world: the ranks.
        call: it may be made again, by fewer of them.

    Raises:
        RanksLost: on all that are left: some have died in it.
    """
    if not world.survives or world.size == 1:
        return call()
    from lockstep.mpi import losses

    try:
        found = call()
    except RanksLost:
        losses.revoke()
        world.comm.watch("agree", lambda: losses.agree(False))
        raise
    if not world.comm.watch("agree", lambda: losses.agree(True)):
        raise RanksLost("ranks have died")
    return found


def surviving(world: World, call: Callable[[], T], mended: Callable[[], object]) -> T:
    """Return what a call returns; where ranks die in it, those that are left call it again.

    Args:
        world: the ranks.
        call: raises RanksLost on all of them.
        mended: has what they compute with be that of those that are left; all of them call it,
            again if others die in it.
    """
    while True:
        try:
            return call()
        except RanksLost:
            if not world.survives:
                raise
        again(world, mended)


def again(world: World, call: Callable[[], T]) -> T:
    """Return what a call returns that all ranks make together, as often as it takes."""
    while True:
        try:
            return together(world, call)
        except RanksLost:
            continue


def meet(world: World) -> None:
    """Have a world be the ranks that MPI has now; all of them call it."""
    take_place(world, max(world.timeout, BETWEEN_HOSTS))
    rendezvous.meet_again(world)


def mend(world: World) -> tuple[list[int], float]:
    """Have the ranks that are left become the world; all of them call it.

    Args:
        world: gets this process's place among them.

    Returns:
        The ranks that are gone, as they were numbered, and the seconds that it took.
    """
    from lockstep.mpi import losses

    started, numbers, gone = time.monotonic(), [*range(world.size)], list[int]()
    while True:
        rendezvous.leave()
        for rank in reversed(losses.shrink()):
            gone.append(numbers.pop(rank))
        try:
            meet(world)
            together(world, world.comm.Barrier)
        except RanksLost:
            losses.revoke()
            continue
        return sorted(gone), time.monotonic() - started
