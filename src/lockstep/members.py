"""The ranks of a training while it runs: those that are lost, that come, and that leave.

Ranks that have lost others go on at once (`lockstep.distributed.elastic`). What is here besides
happens between two steps, when all of them are told to: new ranks are started in place of those
that were lost, or because somebody asked for more; they load what they need while the others train,
and are handed the state when they are ready. The bits do not depend on how many ranks there are, so
nothing else changes.
"""

import dataclasses
import os
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch.distributed as dist
from torch import nn

from lockstep.checkpoint.agreement import check_same, gather
from lockstep.checkpoint.checkpointer import Checkpointer, new_segment, patiently
from lockstep.checkpoint.state import Progress, broadcast_state, fill, load, pass_on, whole
from lockstep.checkpoint.store import Store
from lockstep.distributed import elastic
from lockstep.distributed.ending import depart
from lockstep.distributed.signals import name_of
from lockstep.errors import RanksLost, UserError, say
from lockstep.files import json_sha256
from lockstep.provenance import caps
from lockstep.session import Session
from lockstep.strategies import Kept

# How often ranks are started that do not come to join: what fails so often will fail again.
TRIES = 3
# Seconds without a death after which ranks are started: one that dies while MPI starts others may
# keep the rest in that call, and one rarely comes alone (a host that is short of memory).
CALM = 2.0
# Seconds that MPI may take to start ranks, or to connect them: it has taken 0.2 at most. Where one
# dies in it, another may be held in it for ever, and counts as dead as well after this time.
LONGEST_START = 20.0


@dataclasses.dataclass
class Plan:
    """What all ranks are to do between two steps."""

    wanted: int
    """How many ranks there are to be."""
    start: int = 0
    """How many are to be started."""
    join: bool = False
    """Whether those that were started are to join."""
    drop: bool = False
    """Whether they are of no use."""


class Members:
    """The ranks of a training, on each of them.

    Args:
        session: whose ranks they are.
        progress: where the training is.
        checkpointer: keeps it.
        deal: has the ranks that there are now share the shards; all call it together, and it
            returns those that this one is to do of a step under way.
        open_store: opens the store, where another rank wrote before.
        most: how many ranks there can be.
        replace: whether a new rank is started for each one that is lost.
    """

    def __init__(
        self,
        session: Session,
        progress: Progress,
        checkpointer: Checkpointer,
        deal: Callable[[], Sequence[int]],
        open_store: Callable[[], Store],
        most: int,
        replace: bool,
    ) -> None:
        self.session, self.world, self.progress = session, session.world, progress
        self.checkpointer, self.deal, self.open_store = checkpointer, deal, open_store
        self.most, self.replace = most, replace
        self._first = len(progress.segments[-1]["hosts"])
        self.wanted = self.world.size
        self.coming: Any = None
        self.failed, self._lost_at = 0, -CALM
        self.plan: Plan | None = None
        checkpointer.agreement.changes = self._is_to_change
        if replace and not self.world.survives and self.world.is_first:
            say(
                "replace: a rank that dies ends the job here; the others go on under `lockstep "
                "launch`, with sync_sgd along the tree or a loop of one's own"
            )

    def counts(self) -> dict[str, int]:
        """Return how many ranks there are, of how many this launch began with, as a training tells
        it."""
        return {"ranks": self.world.size, "of_ranks": self._first}

    def words(self) -> str:
        """Return how many ranks there are, for the end of a line, where they are fewer than it
        began with."""
        size, first = self.counts().values()
        since = self.progress.segments[-1]["first_step"]
        return f"  {size} of {first} ranks, since step {since}" if size < first else ""

    # Ranks that are lost.

    def mend(self) -> Sequence[int]:
        """Go on with the ranks that are left; all of them call it.

        Returns:
            The shards that this one is to do, beside those that it has done in a step under way.

        Raises:
            RanksLost: more are.
        """
        keeper, progress, before = self.checkpointer, self.progress, self.world.size
        done = progress.step
        said = self.world.rank, round(keeper.meter.sent), done, self.wanted, elastic.failures()
        over = progress.segments[-1]
        lost, seconds = self.session.mend()
        self._lost_at = time.monotonic()
        self._drop()
        everyones = gather(said)
        for rank, sent, *_ in everyones:
            over["bytes_sent"][rank] = sent
        over["last_step"] = progress.step
        elastic.note_failures([found for *_, found in everyones])
        if any(step != done for _, _, step, *_ in everyones):  # MPI has failed them
            raise RuntimeError("the ranks that are left have not all done the same steps")
        # Without `replace`, ranks that were on their way are to be asked for again.
        known = max(wanted for *_, wanted, _ in everyones)
        self.wanted = known if self.replace else self.world.size
        if self.world.rank == 0:
            say(
                f"lost in step {progress.step + 1}: {', '.join(lost)}; {self.world.size} of "
                f"{before} ranks go on, {seconds:.2f} s later"
            )
        if keeper.store is None and self.world.rank == 0:
            keeper.store = patiently(self.open_store)
            keeper.store.take_over()
        # The rank that was to write the last one may be gone.
        keeper.saved = -1
        self._begin_part(lost=lost, mended_in=round(seconds, 3))
        mine = self.deal()
        again = sum(gather(len(mine)))
        # Where no step was under way, all of the next one's are dealt out.
        progress.segments[-1]["shards_again"] = 0 if again == self.most else again
        return mine

    def _begin_part(self, **what: Any) -> None:
        """Begin another part of the run, with the ranks that there are now; all of them call it."""
        new_segment(self.progress, self.session)
        self.progress.segments[-1] |= what
        self.checkpointer.agreement.ask_soon()
        self.checkpointer.meter.begin()

    def _drop(self) -> None:
        if self.coming is not None:
            self.coming.dismiss()
            self.coming = None

    # Ranks that come and leave, between two steps.

    def _is_to_change(self) -> bool:
        """Return whether something is to be changed; rank 0 alone is asked, now and then."""
        store = self.checkpointer.store
        asked = store.asked_ranks() if store else None
        if not self.world.survives or self.session.device.type != "cpu":
            if asked is not None:
                say(f"{asked} ranks were asked for, and cannot be had here: see docs/failures.md")
            return False
        plan = Plan(self.wanted)
        if asked is not None:
            plan.wanted = min(max(asked, 1), self.most)
            say(f"{asked} ranks were asked for; {self.world.size} train, and {plan.wanted} will")
        if self.coming is not None:
            self._look(plan)
        elif plan.wanted > self.world.size and time.monotonic() - self._lost_at > CALM:
            plan.start = plan.wanted - self.world.size
        self.plan = plan
        return plan != Plan(self.wanted) or self.wanted < self.world.size

    def _look(self, plan: Plan) -> None:
        """See to those that are coming."""
        try:
            said = self.world.comm.watch("look for ranks", self.coming.said)
        except RanksLost:
            self.failed += 1
            plan.drop = True
            if self.failed == TRIES:
                say(f"ranks that were started have not come, {TRIES} times; no more are started")
                plan.wanted = self.world.size
            return
        try:
            for host, same in said:
                self._check(host, same)
        except UserError as error:
            say(f"a rank that was to join is refused: {error}")
            plan.drop, plan.wanted = True, self.world.size
            return
        plan.drop = self.world.size + self.coming.count > plan.wanted
        plan.join = not plan.drop and len(said) == self.coming.count

    def _check(self, host: str, same: dict[str, Any]) -> None:
        """Compare what a newcomer computes with with what all ranks do.

        Raises:
            UserError: it differs.
        """
        theirs = iter([(host, "", json_sha256(same)), same])
        check_same(self.session.same, lambda mine: [*[mine] * self.world.size, next(theirs)])

    def change(self) -> None:
        """Do what rank 0 has planned; all ranks call it.

        Raises:
            RanksLost: some have died meanwhile.
        """
        message = [self.plan]
        dist.broadcast_object_list(message)
        (plan,) = message
        assert plan is not None
        self.wanted = plan.wanted
        if plan.drop:
            self._drop()
        if plan.join:
            self._take_in()
        if plan.start:
            self.coming = self._start(plan.start)
            if self.coming is None:
                self.wanted = self.world.size
        if plan.wanted < self.world.size:
            self._let_go(plan.wanted)

    def _start(self, count: int) -> Any:
        from lockstep.mpi import newcomers

        names = ("PATH", "PYTHONPATH", *caps())
        variables = {name: os.environ[name] for name in names if name in os.environ}
        call = partial(newcomers.start, count, variables)
        return self.world.comm.within(LONGEST_START).watch("start ranks", call)

    def _take_in(self) -> None:
        from lockstep.mpi import newcomers

        started, before = time.monotonic(), self.world.size
        state = self.checkpointer.state(self.progress)
        call, self.coming = partial(newcomers.take_in, self.coming), None
        if not self.world.comm.within(LONGEST_START).watch("take in ranks", call):
            return
        self.session.regroup()
        places = self.session.places[before:]
        joined = [f"rank {rank} ({place['host']})" for rank, place in enumerate(places, before)]
        self._begin_part(joined=joined)
        pass_on(broadcast_state(state and dataclasses.replace(state, progress=self.progress)))
        self.deal()
        elastic.together(self.world, self.world.comm.Barrier)
        self.failed, seconds = 0, time.monotonic() - started
        self.progress.segments[-1]["joined_in"] = round(seconds, 3)
        if self.world.rank == 0:
            say(
                f"joined after step {self.progress.step}: {', '.join(joined)}; {self.world.size} "
                f"ranks go on, {seconds:.2f} s later"
            )

    def _let_go(self, ranks: int) -> None:
        """Have the last ranks leave."""
        from lockstep.mpi import losses

        world, places = self.world, self.session.places
        left = [f"rank {rank} ({places[rank]['host']})" for rank in range(ranks, world.size)]
        self.checkpointer.count_sent(self.progress)
        if not world.comm.watch("let ranks go", partial(losses.keep, ranks)):
            depart(f"{name_of(world)}: leaves after step {self.progress.step}, as it was asked to")
        self.session.regroup()
        self._begin_part(left=left)
        self.deal()
        if world.rank == 0:
            say(f"left after step {self.progress.step}: {', '.join(left)}; {ranks} ranks go on")


def join(session: Session, model: nn.Module, strategy: Kept, batches: int, deal: Any) -> Progress:
    """Become a rank of the job that has started this process, and take on its state.

    Args:
        session: which is a world of one.
        model: gets the weights.
        strategy: as it was made with it.
        batches: the steps of an epoch.
        deal: as `Members` has it.

    Returns:
        Where the training is.
    """
    from lockstep.mpi import newcomers

    newcomers.join((socket.gethostname(), session.same))
    try:
        elastic.survive(session.world, session.backend)
        session.regroup()
        found = broadcast_state(None)
        assert found is not None  # rank 0 has sent it
        fill(model, found.model)
        load(whole(found), strategy, batches)
        deal()
        elastic.together(session.world, session.world.comm.Barrier)
    except RanksLost:  # the others go on without this one, which has nothing yet
        newcomers.leave()
    return found.progress
