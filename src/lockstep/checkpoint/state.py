"""A run's state, and how it comes to rank 0 and from there."""

import contextlib
import copy
import dataclasses
import resource
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from lockstep.distributed.world import World
from lockstep.errors import UserError
from lockstep.optimizer import LazyState
from lockstep.strategies import Kept
from lockstep.tensors import as_bytes


def check_kept(model: nn.Module) -> None:
    """Refuse a model of which a checkpoint would keep less, or other things, than it has.

    Raises:
        UserError: its state_dict has more than parameters and buffers (get_extra_state), or copies
            of them, or lacks a parameter.
    """
    known = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    saved = model.state_dict(keep_vars=True)
    there = {id(tensor) for tensor in saved.values()}
    for name, parameter in model.named_parameters():
        if id(parameter) not in there:
            raise UserError(
                f"model: its state_dict has not the parameter {name} (a hook or a state_dict "
                f"of its own takes it away, or copies it), so that no checkpoint would keep it; "
                f"let state_dict have all parameters themselves"
            )
    for name, value in saved.items():
        if id(value) not in known:
            raise UserError(
                f"model: its state_dict has {name}, which is no parameter and no buffer (it comes "
                f"from get_extra_state, or a hook), and no checkpoint here keeps it; keep it in a "
                f"buffer"
            )


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
    metrics: list[str] = dataclasses.field(default_factory=list)
    """The names of the running sums."""
    kept: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What else a training loop of one's own has kept: numbers and text."""


@dataclasses.dataclass
class Checkpoint:
    """A run's state after a step; all tensors are whole, on the CPU and its own."""

    progress: Progress
    model: Mapping[str, torch.Tensor]
    optimizer: LazyState
    strategy: Mapping[str, torch.Tensor]
    """What else the strategy keeps, and `metrics`: the running sums of each shard, a row each."""


def gather_state(
    strategy: Kept, progress: Progress, sent: float, world: World
) -> Checkpoint | None:
    """Return a run's state on rank 0, copied, so that training may go on; all ranks call it."""
    model = gather_model(strategy, world)
    optimizer = {name: moved(kept, world) for name, kept in strategy.optimizer_state().items()}
    own = moved(strategy.own_state(), world)
    rows = strategy.metrics.gather()
    progress.metrics = list(strategy.metrics.names or ())
    count_sent(progress, sent, world)
    if world.rank:
        return None
    own["metrics"] = rows
    return Checkpoint(copy.deepcopy(progress), model, optimizer, own)


def count_sent(progress: Progress, sent: float, world: World) -> None:
    """Have the record say how far the part of the run that goes on is; all ranks call it."""
    everyones: list[Any] = [None] * world.size
    dist.all_gather_object(everyones, (round(sent), peak_memory()))
    part = progress.segments[-1]
    part["last_step"] = progress.step
    part["bytes_sent"], part["peak_memory"] = map(list, zip(*everyones, strict=True))


def peak_memory() -> int:
    """Return the bytes of memory that this process had at most.

    Linux's ru_maxrss is not that: a process that was started by vfork, as Python does it, begins
    with what its parent had at most.
    """
    with contextlib.suppress(OSError), Path("/proc/self/status").open() as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def gather_model(strategy: Kept, world: World) -> dict[str, torch.Tensor]:
    """Return the model's state_dict on rank 0, copied; all ranks call it."""
    return moved(strategy.model_state(), world)


def moved(tensors: dict[str, torch.Tensor], world: World) -> dict[str, torch.Tensor]:
    """Return copies on the CPU of rank 0, letting go of each tensor as soon as it is copied."""
    if world.rank:
        return {}
    return {name: copied(tensors.pop(name)) for name in list(tensors)}


def copied(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy on the CPU."""
    # As it lies: putting elements in another order takes longer, and can be done while writing.
    return tensor.detach().to("cpu", copy=True)


class Broadcast(Mapping[str, torch.Tensor]):
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


def broadcast_state(found: Checkpoint | None) -> Checkpoint | None:
    """Return rank 0's checkpoint, or None, on all ranks: they need not see its files.

    They must all go through its tensors in the same order: see `Broadcast`.
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
        Broadcast(model, found.model if found else None),
        {
            name: Broadcast(keys, found.optimizer[name] if found else None)
            for name, keys in optimizer.items()
        },
        Broadcast(own, found.strategy if found else None),
    )


def pass_on(found: Checkpoint | None) -> None:
    """Go through what `broadcast_state` returned, which others are to have."""
    if found:
        for kept in (found.model, *found.optimizer.values(), found.strategy):
            for _ in kept.values():
                pass


def whole(found: Checkpoint) -> Checkpoint:
    """Return what `broadcast_state` returned with all that it keeps beside the model on this rank,
    in the order of `pass_on`; the model's tensors are taken before."""
    optimizer = {name: dict(kept) for name, kept in found.optimizer.items()}
    return dataclasses.replace(found, optimizer=optimizer, strategy=dict(found.strategy))


def load(found: Checkpoint, strategy: Kept, batches: int) -> None:
    """Have a strategy go on from a checkpoint, whose weights its model has already.

    Args:
        batches: the steps of an epoch.
    """
    strategy.load(found.optimizer, found.strategy)
    if found.progress.step % batches:
        strategy.metrics.load(found.progress.metrics, found.strategy["metrics"])


def fill(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Set a model's state to tensors by name, one after the other."""
    state = model.state_dict()
    for name, tensor in tensors.items():
        state[name].copy_(tensor)
