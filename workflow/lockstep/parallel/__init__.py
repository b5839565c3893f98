"""Strategies: how ranks share the work of a step. One module each, one interface.

A strategy turns the shards' micro-batches of a step into gradients, averaged over the global batch
and the same on every rank, in `parameter.grad`. What a micro-batch's loss is, it is told.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import nn

from lockstep.comm.world import World
from lockstep.config import Run
from lockstep.data.batches import MicroBatch

# The forward pass over one or more shards' micro-batches as one batch: the mean loss, on which
# backward is called, and [sum of losses, number of right answers] (float32, 2).
Objective = Callable[[nn.Module, Sequence[MicroBatch]], tuple[torch.Tensor, torch.Tensor]]


class Strategy(Protocol):
    """What `train` asks of a strategy."""

    communication: float
    """Seconds that this rank has spent in communication so far."""

    def gradients(self, micro_batches: Sequence[MicroBatch]) -> torch.Tensor:
        """Do a step's forward and backward passes over this rank's shards.

        Returns [sum of losses, number of right answers] (float32, 2), over the global batch, or
        over this rank's part where `totals` adds up the ranks.
        """
        ...

    def totals(self, sums: torch.Tensor) -> torch.Tensor:
        """Return an epoch's sums of what `gradients` returned (float64, 2), over all ranks."""
        ...


def keeps_bits(run: Run) -> bool:
    """Return whether the run's strategy gives the same bits at any number of ranks."""
    return run.strategy == "single" or (run.strategy == "sync_sgd" and run.reduction == "tree")


def make(run: Run, model: nn.Module, objective: Objective, world: World) -> Strategy:
    """Return the run's strategy."""
    if run.strategy == "ddp":
        from lockstep.parallel.ddp import DataParallelByTorch

        return DataParallelByTorch(model, objective)
    from lockstep.parallel.sync_sgd import FastReduction, TreeReduction

    if keeps_bits(run):
        return TreeReduction(model, objective, world, run.shards)
    return FastReduction(model, objective, world)
