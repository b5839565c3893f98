"""What a run needs to go on to the same bits, on any number of ranks; and when it is saved."""

import copy
import dataclasses
import time
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn

from lockstep import parallel
from lockstep.comm.alike import check_alike
from lockstep.comm.interrupt import Agreement, Interrupt
from lockstep.comm.world import World
from lockstep.config import Run
from lockstep.errors import Interrupted, UserError
from lockstep.optim import State

if TYPE_CHECKING:
    from lockstep.store import Store


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
    model: dict[str, torch.Tensor]
    optimizer: State
    strategy: dict[str, torch.Tensor]
    """What else the strategy keeps, and `sums`: the running sums of each rank, a row each."""


def collect(
    strategy: parallel.Strategy, progress: Progress, sums: torch.Tensor, sent: float, world: World
) -> Checkpoint | None:
    """Return a run's state on rank 0, copied, so that training may go on; all ranks call it."""
    model, optimizer, own = strategy.model_state(), strategy.optimizer_state(), strategy.own_state()
    everyones: list[Any] = [None] * world.size
    dist.all_gather_object(everyones, (sums.cpu(), round(sent)))
    progress.segments[-1]["last_step"] = progress.step
    progress.segments[-1]["bytes_sent"] = [sent for _, sent in everyones]
    if world.rank:
        return None
    kept = {name: _copy(state) for name, state in optimizer.items()}
    rest = _copy(own) | {"sums": torch.stack([sums for sums, _ in everyones])}
    return Checkpoint(copy.deepcopy(progress), _copy(model), kept, rest)


def _copy(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    # As they lie: putting elements in another order takes longer, and can be done while writing.
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def spread(found: Checkpoint | None) -> Checkpoint | None:
    """Return rank 0's checkpoint, or None, on all ranks: they need not see its files."""
    parts: list[Any] = [found.model, found.optimizer, found.strategy] if found else []
    message: list[Any] = [(found.progress, [_described(part) for part in parts]) if found else None]
    dist.broadcast_object_list(message)
    if message[0] is None:
        return None
    progress, described = message[0]
    parts = parts or [_empty(part) for part in described]
    for part in parts:
        for tensor in _tensors(part):
            dist.broadcast(tensor, 0)
    return Checkpoint(progress, *parts)


def _described(part: Any) -> Any:
    if isinstance(part, dict):
        return {name: _described(value) for name, value in part.items()}
    return tuple(part.shape), part.dtype


def _empty(described: Any) -> Any:
    if isinstance(described, dict):
        return {name: _empty(value) for name, value in described.items()}
    return torch.empty(described[0], dtype=described[1])


def _tensors(part: Any) -> list[torch.Tensor]:
    if isinstance(part, dict):
        return [tensor for value in part.values() for tensor in _tensors(value)]
    return [part]


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
                    if name in state.model and not torch.isfinite(state.model[name]).all():
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
            if not torch.equal(named[name].cpu(), value):
                raise UserError(
                    f"model: the buffer {name} changes in training, and is not in the state_dict: "
                    f"no checkpoint could keep it; register it without persistent=False"
                )

    def snapshot(self, name: str) -> None:
        """Have the weights kept as they are now; all ranks call it."""
        weights = self.strategy.model_state()
        if self.store:
            self.store.put_snapshot(name, _copy(weights))

    def _is_late(self) -> bool:
        return (
            time.monotonic() - self.last > self.seconds
            and self.store is not None
            and not self.store.busy
        )
