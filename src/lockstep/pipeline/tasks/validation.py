"""How good a model is on a part of the data, over all ranks; and what follows from it in training.

A part is cut into chunks of a fixed size, and each rank takes a block of them: no sample is counted
twice, every kernel sees the same shapes at any number of ranks, and rank 0 adds up the samples'
losses in their own order. So the numbers are the same at any number of ranks.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from lockstep.checkpoint.state import Broadcast, fill
from lockstep.distributed.world import World
from lockstep.errors import UserError
from lockstep.pipeline.config import Run
from lockstep.pipeline.data.arrays import Part, open_part
from lockstep.pipeline.data.manifest import Manifest
from lockstep.pipeline.tasks.supervised import Supervised
from lockstep.reduce.layout import copy_of
from lockstep.testing import faults

LOSS = "validation_loss"


def score(
    model: nn.Module,
    part: Part,
    task: Supervised,
    world: World,
    where: tuple[object, str],
    detail: bool = False,
) -> dict[str, np.ndarray] | None:
    """Return what the task wants to know of each sample of a part; all ranks call it.

    Args:
        model: the same on every rank, in evaluation mode.
        part: with one sample at least.
        task: what the model is for.
        world: who this process is.
        where: what the model and the part are called, for a message.
        detail: whether what the task's tables have besides is wanted as well.

    Returns:
        On rank 0: of the samples, in their order. None on the others.

    Raises:
        UserError: on rank 0: a sample's scores are no numbers.
    """
    chunks = -(-len(part) // task.chunk)
    mine = range(chunks * world.rank // world.size, chunks * (world.rank + 1) // world.size)
    found = []
    with torch.inference_mode():
        for chunk in mine:
            some = slice(chunk * task.chunk, (chunk + 1) * task.chunk)
            inputs, expected = part.read(some)
            targets = task.to_targets(expected)
            outputs = task.forward(model, task.normalize(inputs)).float()
            more = task.detail(outputs) if detail else {}
            found.append({**task.predict(outputs, targets), **more})
    everyone: list[Any] | None = [None] * world.size if world.rank == 0 else None
    dist.gather_object(found, everyone)
    if everyone is None:
        return None
    in_order = [chunk for some in everyone for chunk in some]
    joined = {name: np.concatenate([chunk[name] for chunk in in_order]) for name in in_order[0]}
    if (wrong := np.flatnonzero(np.isnan(joined["loss"]))).size:
        raise UserError(
            f"{where[0]}: its scores of sample {wrong[0]} of the {where[1]} are no numbers; train "
            f"with a smaller lr, or with clip"
        )
    return joined


class Validation:
    """The validation part of the data, and a model to hold the weights that are measured on it.

    Whatever the strategy, each rank has that model whole, as in `evaluate`.

    Args:
        model: a copy of the one that is trained; it is this object's own.
        part: with one sample at least.
        task: what the model is for.
        world: who this process is.
        names: the metrics that are wanted, beside the loss.
    """

    def __init__(
        self, model: nn.Module, part: Part, task: Supervised, world: World, names: Sequence[str]
    ) -> None:
        self.model, self.part, self.task, self.world = model.eval(), part, task, world
        self.names = ("loss", *names)

    def measure(self, weights: Mapping[str, torch.Tensor], epoch: int) -> dict[str, float]:
        """Return the loss and the metrics as columns of history.csv; all ranks call it.

        Args:
            weights: a state_dict, on rank 0.
            epoch: after which it is, for a message.

        Raises:
            UserError: on rank 0: a sample's scores are no numbers.
        """
        source = None if self.world.rank else weights
        fill(self.model, Broadcast(list(self.model.state_dict()), source))
        faults.point("validation", epoch)
        where = f"the model after epoch {epoch}", "validation part"
        found = score(self.model, self.part, self.task, self.world, where)
        message: list[dict[str, float]] = [{}]
        if found is not None:
            metrics = self.task.measure(np.asarray(self.part.targets), found)
            message = [{f"validation_{name}": metrics[name] for name in self.names}]
        dist.broadcast_object_list(message)
        return message[0]


def validation_of(
    run: Run, data: Path, manifest: Manifest, model: nn.Module, task: Supervised, world: World
) -> Validation | None:
    """Return what measures a run's model on the validation part of `data`, if there is one.

    Raises:
        UserError: there is none, and the run wants one.
    """
    if manifest.samples.get("validation"):
        part = open_part(data / "validation", manifest.kind)
        return Validation(copy_of(model), part, task, world, manifest.kind.validated)
    if run.chooses:
        raise UserError(
            f"{run.chooses} needs a validation part, and {data} has none; let `prepare` keep one "
            f"(dataset, in config/README.md), or leave {run.chooses.partition(':')[0]} away"
        )
    return None


def best_of(history: Sequence[Mapping[str, float]]) -> Mapping[str, float] | None:
    """Return the row of the epoch with the lowest loss on the validation part, the first of them.

    None: no epoch has one.
    """
    rows = [row for row in history if LOSS in row]
    return min(rows, key=lambda row: row[LOSS], default=None)


def is_over(history: Sequence[Mapping[str, float]], patience: int | None) -> bool:
    """Return whether the loss on the validation part has not been lower for `patience` epochs."""
    best = best_of(history)
    return bool(patience and best and history[-1]["epoch"] - best["epoch"] >= patience)


def snapshot_name(epoch: int) -> str:
    """Return the name of an epoch's snapshot; epochs are counted from 1."""
    return f"epoch-{epoch:04}.safetensors"


def best_name(history: Sequence[Mapping[str, float]]) -> str:
    """Return the name of the weights of the best epoch so far."""
    best = best_of(history)
    return f"best-{best['epoch'] if best else 0:04}.safetensors"
