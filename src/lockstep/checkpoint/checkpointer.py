"""When a run is saved, and what it goes on from."""

import datetime
import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from lockstep.checkpoint.agreement import check_alike
from lockstep.checkpoint.state import (
    Checkpoint,
    Progress,
    broadcast_state,
    copied,
    count_sent,
    fill,
    gather_model,
    gather_state,
    load,
)
from lockstep.checkpoint.store import Store
from lockstep.distributed.signals import Agreement, Interrupt
from lockstep.distributed.world import World
from lockstep.errors import Interrupted, UserError, say
from lockstep.measure.meter import Meter
from lockstep.strategies import Kept
from lockstep.tensors import digest

T = TypeVar("T", bound=Kept)

# Seconds after its death that a rank's lock may still be there, on a network's file system.
LOCK_OF_THE_DEAD = 30.0


def resume(
    store: Store | None, model: nn.Module, make: Callable[[], T], batches: int
) -> tuple[T, Progress]:
    """Return the strategy and where the run is: at its beginning, or where it was cut off.

    Args:
        store: on rank 0; None on the others.
        model: gets the weights that were saved.
        make: makes the strategy with the model.
        batches: the steps of an epoch.
    """
    found: Checkpoint | None = None
    if store:
        for line in store.others():
            say(line)
        found = store.newest()
        if found:
            say(f"going on after step {found.progress.step}, from {store.folder}")
    found = broadcast_state(found)
    if found is None:
        return make(), Progress()
    fill(model, found.model)
    strategy = make()
    load(found, strategy, batches)
    return strategy, found.progress


class Checkpointer:
    """Saves a run now and then, and when it is told to stop; on every rank.

    Args:
        world: who this process is.
        interrupt: the signals that it got.
        strategy: what is saved.
        store: where to, on rank 0; None on the others.
        model: as `strategy` was made with it.
        every: how often: what `period` returns.
        batches: the steps of an epoch.
        saved: the step after which the run is saved already.
        kept: gives what else is to be kept (JSON), when the run is saved.
    """

    def __init__(
        self,
        world: World,
        interrupt: Interrupt,
        strategy: Kept,
        store: Store | None,
        model: nn.Module,
        every: tuple[float, str],
        batches: int,
        saved: int = 0,
        kept: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        self.world, self.strategy, self.store, self.model = world, strategy, store, model
        self.kept = kept
        self.trained = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        amount, unit = every
        self.seconds = amount if unit == "seconds" else float("inf")
        self.steps = {"steps": int(amount), "epochs": int(amount) * batches}.get(unit, 0)
        self.agreement = Agreement(world, interrupt, self._is_late, self._is_told)
        self.last = time.monotonic()
        named, saving = dict(model.named_buffers()), model.state_dict().keys()
        self.unsaved = {name: copied(named[name]) for name in named.keys() - saving}
        self.saved = saved or -1  # a checkpoint that is whole is not to be written over
        self.meter = Meter()
        self.pauses = {"checkpoints": 0, "seconds": 0.0, "longest": 0.0}
        """How many checkpoints there were, and for how long they held this rank up."""

    def after_step(self, progress: Progress) -> bool:
        """Save the run if that is due.

        Returns:
            Whether the ranks are to change.

        Raises:
            Interrupted: on all ranks, when it is saved, because one of them has been told to stop.
            UserError: on all ranks: they have drifted apart. On rank 0: a weight is not finite, or
                the last checkpoint before the end cannot be written.
        """
        number, late, changes = self.agreement.after(progress.step)
        if number or late or (self.steps and progress.step % self.steps == 0):
            self.save(progress, wait=bool(number))
        if number:
            raise Interrupted(number, progress.step)
        return changes

    def state(self, progress: Progress) -> Checkpoint | None:
        """Return the run's state on rank 0, copied, so that training may go on; all ranks call it.

        Raises:
            UserError: on all ranks: they have drifted apart. On rank 0: a weight is not finite.
        """
        self._check(progress.step)
        progress.kept = self.kept()
        state = gather_state(self.strategy, progress, self.meter.sent, self.world)
        if state:
            self._check_finite(state)
        return state

    def count_sent(self, progress: Progress) -> None:
        """Have the record say how far the part of the run that goes on is; all ranks call it."""
        count_sent(progress, self.meter.sent, self.world)

    def _is_told(self) -> bool:
        return self.store is not None and self.store.told_to_stop()

    def save(self, progress: Progress, wait: bool) -> None:
        """Have the run's state written, and wait until it is if need be; all ranks call it."""
        started = time.monotonic()
        if progress.step != self.saved:
            if self.store:
                self.store.finish()  # two of them at once might be more than memory holds
            state = self.state(progress)
            if self.store and state:
                self.store.put(state)
            self.saved, self.last = progress.step, time.monotonic()
            pause = time.monotonic() - started
            self.pauses["checkpoints"] += 1
            self.pauses["seconds"] += pause
            self.pauses["longest"] = max(pause, self.pauses["longest"])
        if wait:
            if self.store:
                self.store.wait()
            dist.barrier()  # a rank that left now would take rank 0 with it, in the middle of it

    def _check(self, step: int) -> None:
        """Refuse to save ranks that have drifted apart, and what could not be saved whole."""
        check_alike(self.strategy.alike(), step)
        named = dict(self.model.named_buffers())  # a forward pass may have assigned it anew
        for name, value in self.unsaved.items():
            if digest(named[name]) != digest(value):
                raise UserError(
                    f"model: the buffer {name} changes in training, and is not in the state_dict: "
                    f"no checkpoint could keep it; register it without persistent=False"
                )

    def _check_finite(self, state: Checkpoint) -> None:
        for name in self.trained:
            if not torch.isfinite(state.model[name]).all():
                raise UserError(
                    f"weights: {name} is not finite after step {state.progress.step}; the last "
                    f"checkpoint is from before; take a smaller lr, or set clip"
                )

    def snapshot(self, name: str) -> None:
        """Have the weights kept as they are now; all ranks call it."""
        self.put_snapshot(name, gather_model(self.strategy, self.world))

    def put_snapshot(self, name: str, weights: dict[str, torch.Tensor]) -> None:
        """Have weights kept that lie on rank 0 and that nobody else will change."""
        if self.store:
            self.store.put_snapshot(name, weights)

    def finish(self) -> None:
        """Wait until all that is to be written is."""
        if self.store:
            self.store.finish()

    def keep_snapshots(self, names: set[str]) -> None:
        """Keep no snapshots but these."""
        if self.store:
            self.store.keep_snapshots(names)

    def _is_late(self) -> bool:
        return (
            time.monotonic() - self.last > self.seconds
            and self.store is not None
            and not self.store.busy
        )


def patiently(make: Callable[[], Store]) -> Store:
    """Open a store whose owner has just died: its lock may not be free yet."""
    until = time.monotonic() + LOCK_OF_THE_DEAD
    while True:
        try:
            return make()
        except UserError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


def now() -> str:
    """Return the time, as records have it."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def new_segment(progress: Progress, session: Any, started: str = "") -> None:
    """Begin a part of a run: who goes on with it, when (now, unless that is said) and where.

    Other processors than those of the part before, which may have other bits, are said.
    """
    processors = sorted({place["processor"] for place in session.places})
    if progress.segments and session.world.rank == 0:
        before = progress.segments[-1]["processors"]
        if processors != before:
            say(
                f"it ran on {', '.join(before)}, and now on {', '.join(processors)}: bits may "
                f"differ"
            )
    progress.segments.append(
        {
            "first_step": progress.step,
            "last_step": progress.step,
            "started": started or now(),
            "launcher": session.world.launcher,
            "backend": session.backend,
            "hosts": [place["host"] for place in session.places],
            "processors": processors,
            "bytes_sent": [0] * session.world.size,
            "peak_memory": [0] * session.world.size,
        }
    )
