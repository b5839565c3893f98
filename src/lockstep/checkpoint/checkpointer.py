"""What a run needs to go on to the same bits, on any number of ranks; and when it is saved."""

import copy
import dataclasses
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn

from lockstep import strategies as parallel
from lockstep.checkpoint.agreement import check_alike
from lockstep.checkpoint.tensors import as_bytes, digest
from lockstep.distributed.signals import Agreement, Interrupt
from lockstep.distributed.world import World
from lockstep.errors import Interrupted, UserError
from lockstep.pipeline.config import Run
from lockstep.pipeline.optim import LazyState

if TYPE_CHECKING:
    from lockstep.checkpoint.store import Store


@dataclasses.dataclass
class Progress:
    """Where a run is: `step` steps are done."""

    step: int = 0
    history: list[dict[str, float]] = dataclasses.field(default_factory=list)
    """The rows of history.csv of the epochs that are over."""
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    """What the epoch that goes on has taken so far, by rank 0's clock."""
    segments: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """The parts that the run came in: from which step to which, when, and on what."""


@dataclasses.dataclass
class Checkpoint:
    """A run's state after a step; all tensors are whole, on the CPU and its own."""

    progress: Progress
    model: Mapping[str, torch.Tensor]
    optimizer: LazyState
    strategy: Mapping[str, torch.Tensor]
    """What else the strategy keeps, and `sums`: the running sums of each rank, a row each."""


def collect(
    strategy: parallel.Strategy, progress: Progress, sums: torch.Tensor, sent: float, world: World
) -> Checkpoint | None:
    """Return a run's state on rank 0, copied, so that training may go on; all ranks call it."""
    model = _moved(strategy.model_state(), world)
    optimizer = {name: _moved(kept, world) for name, kept in strategy.optimizer_state().items()}
    own = _moved(strategy.own_state(), world)
    everyones: list[Any] = [None] * world.size
    dist.all_gather_object(everyones, (sums.cpu(), round(sent)))
    progress.segments[-1]["last_step"] = progress.step
    progress.segments[-1]["bytes_sent"] = [sent for _, sent in everyones]
    if world.rank:
        return None
    own["sums"] = torch.stack([sums for sums, _ in everyones])
    return Checkpoint(copy.deepcopy(progress), model, optimizer, own)


def _moved(tensors: dict[str, torch.Tensor], world: World) -> dict[str, torch.Tensor]:
    """Return copies on the CPU of rank 0, letting go of each tensor as soon as it is copied."""
    if world.rank:
        return {}
    return {name: _copied(tensors.pop(name)) for name in list(tensors)}


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    # As it lies: putting elements in another order takes longer, and can be done while writing.
    return tensor.detach().to("cpu", copy=True)


def _copy(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: _copied(tensor) for name, tensor in tensors.items()}


class Spread(Mapping[str, torch.Tensor]):
    """Rank 0's tensors, on all ranks: whichever one is asked for, all ask for it together.

    A rank has no more of them at a time than it keeps of what it was given.
    """

    def __init__(self, names: list[str], source: Mapping[str, torch.Tensor] | None) -> None:
        self.names, self.source = names, source

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor = self.source[name] if self.source is not None else torch.empty(0)
        message = [(tensor.shape, tensor.dtype)]
        dist.broadcast_object_list(message)
        if self.source is None:
            tensor = torch.empty(message[0][0], dtype=message[0][1])
        tensor = tensor.contiguous()
        dist.broadcast(as_bytes(tensor), 0)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def spread(found: Checkpoint | None) -> Checkpoint | None:
    """Return rank 0's checkpoint, or None, on all ranks: they need not see its files.

    They must all go through its tensors in the same order: see `Spread`.
    """
    message: list[Any] = [None]
    if found:
        names = {name: list(kept) for name, kept in found.optimizer.items()}
        message[0] = found.progress, list(found.model), names, list(found.strategy)
    dist.broadcast_object_list(message)
    if message[0] is None:
        return None
    progress, model, optimizer, own = message[0]
    return Checkpoint(
        progress,
        Spread(model, found.model if found else None),
        {
            name: Spread(keys, found.optimizer[name] if found else None)
            for name, keys in optimizer.items()
        },
        Spread(own, found.strategy if found else None),
    )


def fill(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Set a model's state to tensors by name, one after the other."""
    state = model.state_dict()
    for name, tensor in tensors.items():
        state[name].copy_(tensor)


class Keeper:
    """Saves a run now and then, and when it is told to stop; on every rank.

    Args:
        store: where to, on rank 0; None on the others.
        model: as `strategy` was made with it.
        trained: the names of its parameters.
        steps: those of an epoch.
    """

    def __init__(
        self,
        run: Run,
        world: World,
        strategy: parallel.Strategy,
        interrupt: Interrupt,
        store: "Store | None",
        model: nn.Module,
        trained: set[str],
        steps: int,
    ) -> None:
        self.world, self.strategy, self.store, self.trained = world, strategy, store, trained
        amount, unit = run.checkpoint_period
        self.seconds = amount if unit == "seconds" else float("inf")
        self.steps = {"steps": int(amount), "epochs": int(amount) * steps}.get(unit, 0)
        self.agreement = Agreement(world, interrupt, self._is_late)
        self.last = time.monotonic()
        self.model = model
        named, kept = dict(model.named_buffers()), model.state_dict().keys()
        self.unsaved = _copy({name: named[name] for name in named.keys() - kept})
        self.saved = -1
        self.sent = 0.0
        """The bytes that this rank has sent for its steps."""
        self.pauses = {"checkpoints": 0, "seconds": 0.0, "longest": 0.0}
        """How many checkpoints there were, and for how long they held this rank up."""

    def after_step(self, progress: Progress, sums: torch.Tensor) -> None:
        """Save the run if that is due.

        Raises:
            Interrupted: on all ranks, when it is saved, because one of them has been told to stop.
            UserError: on all ranks: they have drifted apart. On rank 0: a weight is not finite, or
                the last checkpoint before the end cannot be written.
        """
        number, late = self.agreement.after(progress.step)
        if number or late or (self.steps and progress.step % self.steps == 0):
            self.save(progress, sums, wait=bool(number))
        if number:
            raise Interrupted(number, progress.step)

    def save(self, progress: Progress, sums: torch.Tensor, wait: bool) -> None:
        """Have the run's state written, and wait until it is if need be; all ranks call it."""
        started = time.monotonic()
        if progress.step != self.saved:
            self._check(progress.step)
            if self.store:
                self.store.finish()  # two of them at once might be more than memory holds
            state = collect(self.strategy, progress, sums, self.sent, self.world)
            if self.store and state:
                for name in self.trained:
                    if not torch.isfinite(state.model[name]).all():
                        raise UserError(
                            f"weights: {name} is not finite after step {progress.step}; the last "
                            f"checkpoint is from before; take a smaller lr, or set clip"
                        )
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

    def snapshot(self, name: str) -> None:
        """Have the weights kept as they are now; all ranks call it."""
        weights = _moved(self.strategy.model_state(), self.world)
        if self.store:
            self.store.put_snapshot(name, weights)

    def _is_late(self) -> bool:
        return (
            time.monotonic() - self.last > self.seconds
            and self.store is not None
            and not self.store.busy
        )
