"""A step of a training loop of one's own: its shards, dealt to ranks, and their reduction.

The loop over a step yields this rank's shards. Each is a piece of work: from the same weights, the
same buffers and random numbers of its own, its gradient is formed by itself, whoever has it. When
the loop is at its end, gradients are summed along the tree over all shards of all ranks, divided
once by all items of the global batch, and lie in the parameters' `grad`, on every rank the same.

A step is committed when every rank has that sum; until then nothing that the step changes is kept.
So here is the place where ranks that were lost meanwhile can be found out, and the shards that
they had be dealt out and yielded anew.
"""

import math
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, SupportsIndex

import numpy as np
import torch
from torch import nn

from lockstep.determinism import draw_for
from lockstep.errors import RanksLost, UserError
from lockstep.metrics import ITEMS, Metrics
from lockstep.testing import faults

if TYPE_CHECKING:
    from lockstep.gradients import Gradients
    from lockstep.loop import OwnSession
    from lockstep.run import Run

# How a loss looks to autograd that is a mean over the items: what each loss function has for the
# word "mean" in `reduction` (torch.nn._reduction.get_enum).
_MEAN = 1
# What a mean is still one after.
_PASSED = ("AddBackward0", "NegBackward0", "SqueezeBackward0", "ToCopyBackward0", "ViewBackward0")


class Shard:
    """One shard's part of a step.

    Attributes:
        index: which of the S shards it is.
        ids: its samples of this step (int64, B/S).
    """

    def __init__(self, step: "Step", index: int, ids: np.ndarray) -> None:
        self.index, self.ids = index, ids
        self.where: str = f"{step.where}, shard {index}"
        self.sums: dict[str, float] = {}
        self._gradients = step.gradients

    def backward(
        self,
        loss: torch.Tensor,
        items: SupportsIndex,
        name: str = "loss",
        **metrics: torch.Tensor | float,
    ) -> None:
        """Add the gradient of a loss to the shard's.

        Called more than once, losses and items add up. Of two losses over the same items, give
        their sum, or the second one with no items.

        Args:
            loss: the sum over the items (a scalar).
            items: how many (samples, tokens) it is the sum over: the step's gradient is divided by
                all items of all shards.
            name: the loss's, in `Step.metrics` and `Run.history`.
            metrics: other sums over the items, by name.

        Raises:
            UserError: the loss is not a sum of finite numbers, or the shard is not the one that
                the loop is at.
        """
        _check_loss(loss, items, self.where)
        self._gradients.backward(self, loss)
        count = operator.index(items)
        for key, value in {name: loss, f"{ITEMS}{name}": count, **metrics}.items():
            if isinstance(value, torch.Tensor):
                value = value.detach()
            self.sums[key] = self.sums.get(key, 0.0) + float(value)


class Step:
    """One step: loop over it for this rank's shards; after the loop, gradients are reduced.

    Looped over again, it yields the same shards for another pass, which begins with no gradients:
    for another optimizer, say.

    Attributes:
        number: how many steps were done before it.
        epoch: how many epochs were.
        ends_epoch: whether it is the last of its epoch.
        metrics: after the loop, the means over the items of the global batch, by name, on every
            rank the same.
    """

    def __init__(self, run: "Run", number: int) -> None:
        self.number = number
        self.epoch, self._index = divmod(number, run.sampler.batches)
        self.ends_epoch = self._index + 1 == run.sampler.batches
        self.metrics: dict[str, float] = {}
        self.where: str = f"step {number + 1}"
        self.session: OwnSession = run.session
        self.gradients: Gradients = run.gradients
        self._run = run
        self.gradients.where = self.where
        self.passes = 0
        self.is_reduced = False
        self.sums: dict[str, torch.Tensor] = {}

    def __iter__(self) -> Iterator[Shard]:
        gradients, trace = self.gradients, self._run.trace
        mine: Sequence[int] = self.session.deal()
        sums = Metrics(self.session.shards, mine)
        self.is_reduced = False
        gradients.begin()
        yield from gradients.rehearse(self, mine[0])
        while True:
            for index in mine:
                faults.point("shard", self.number)
                shard = self.shard(index)
                yield shard
                if trace:
                    trace.after_shard(self, shard)
                gradients.add(shard)
                sums.add(index, shard.sums)
            try:
                with self._run.meter:
                    totals, rows = gradients.reduce(self, sums)
                break
            except RanksLost:  # those that are left do what nobody has done
                mine = self._run.mend()
        self.metrics |= means(totals)
        for name, column in zip(totals, rows.unbind(1), strict=True):
            self.sums[name] = self.sums.get(name, 0.0) + column
        if trace:
            trace.after_reduce(self)
        self.is_reduced = True
        self.passes += 1

    def shard(self, index: int) -> Shard:
        """Return a shard whose turn it is: the next backward pass is its own."""
        again = (self.passes,) if self.passes else ()
        draw_for(self.session.device, "dropout", self.session.seed, self.number, index, *again)
        shard = Shard(self, index, self._run.sampler.ids(self.epoch, self._index, index))
        self.gradients.begin_shard(shard)
        if self._run.trace:
            self._run.trace.begin_shard()
        return shard

    def clip(
        self, longest: float, parameters: Iterable[nn.Parameter] | None = None
    ) -> torch.Tensor:
        """Scale the gradient down to a norm, if it is longer; call it after the loop.

        Args:
            longest: the norm that it may have.
            parameters: whose gradient; None: all that are trained.

        Returns:
            The norm that it had.
        """
        self._run.check_reduced("clip")
        trained = self.gradients.parameters if parameters is None else parameters
        return nn.utils.clip_grad_norm_(trained, longest)


def means(totals: Mapping[str, float], passes: Iterable[Iterable[str]] = ()) -> dict[str, float]:
    """Return means over the items: those of the loss that came before each metric.

    A loss that has no items of its own is one more over those of its pass.

    Args:
        totals: sums by name.
        passes: the names that each pass has given; none: there was one.
    """
    found: dict[str, float] = {}
    for names in [*passes] or [[*totals]]:
        of_pass = [name for name in names if name in totals]
        whole = sum(totals[name] for name in of_pass if name.startswith(ITEMS))
        items = 0.0
        for name in of_pass:
            if not name.startswith(ITEMS):
                items = totals.get(f"{ITEMS}{name}", items) or whole
                found[name] = totals[name] / items if items else math.nan
    return found


def _check_loss(loss: torch.Tensor, items: object, where: str) -> None:
    """Refuse what is no sum over items.

    Raises:
        UserError: it is none.
    """
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        found = tuple(loss.shape) if isinstance(loss, torch.Tensor) else type(loss).__name__
        raise UserError(
            f"loss: {where}: expected one number, the sum over the items, not {found}; take its "
            f"sum()"
        )
    if not _is_count(items):
        raise UserError(
            f"items: {where}: expected how many samples or tokens the loss is the sum over, a "
            f"whole number, not {items!r}"
        )
    if node := _mean_in(loss):
        raise UserError(
            f"loss: {where}: is a mean ({node}), whose denominator is this shard's alone; give "
            f'the sum (reduction="sum") and its items, and the step divides by all of them'
        )
    if not math.isfinite(value := loss.item()):
        raise UserError(
            f"loss: {where}: is {value}; nothing of this step is kept; take a smaller learning "
            f"rate, clip, or look at these samples"
        )


def _is_count(items: object) -> bool:
    """Return whether items are a whole number: of Python's, of NumPy's, or in a tensor."""
    try:
        return operator.index(items) >= 0 and not isinstance(items, bool)  # type: ignore[arg-type]
    except (TypeError, RuntimeError):
        return False


def _mean_in(loss: torch.Tensor) -> str:
    """Return the name of the mean that a loss is, or is a sum of, or nothing.

    What is multiplied by more than 1, or processed otherwise, is left alone: it may well be a sum
    again.
    """
    waiting = [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None:
            continue
        name = node.name()
        if name.startswith("MeanBackward") or getattr(node, "_saved_reduction", None) == _MEAN:
            return name
        if name in _PASSED or _makes_smaller(node):
            waiting += [before for before, _ in node.next_functions]
    return ""


def _makes_smaller(node: torch.autograd.graph.Node) -> bool:
    """Return whether all that a node does is to multiply by at most 1: a weight among losses."""
    name, factor = node.name(), getattr(node, "_saved_other", None)
    if isinstance(factor, torch.Tensor) and factor.numel() == 1 and not factor.requires_grad:
        factor = factor.item()
    if not isinstance(factor, int | float):
        return False
    return (name.startswith("MulBackward") and abs(factor) <= 1) or (
        name.startswith("DivBackward") and abs(factor) >= 1
    )
