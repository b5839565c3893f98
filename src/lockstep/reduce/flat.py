"""A model's gradients and BatchNorm statistics in one flat tensor: one collective for all."""

from collections.abc import Iterable
from operator import attrgetter, is_

import torch
from torch import nn

from lockstep.errors import UserError
from lockstep.reduce.buffers import Buffers

# The largest change of an integer buffer in a step. Its sum over 256 shards is still exact in
# float32, which has 24 bits.
LARGEST_CHANGE = 2**16

_grad = attrgetter("grad")

# A model's buffers as two vectors: the floating-point ones in the model's type, and the integers
# and truth values as int64.
Statistics = tuple[torch.Tensor, torch.Tensor]


class Flat:
    """How a model's gradients and its buffers lie in a flat tensor.

    The order is [gradients | floating-point buffers | other buffers]. Of buffers it holds by how
    much they change in a step, of which the mean over the shards is taken: what one shard saw does
    not count more than what another did.

    Args:
        model: whose they are.
        gradients: whether gradients are among them.

    Raises:
        UserError: parameters and buffers are not of one floating-point type.
    """

    def __init__(self, model: nn.Module, gradients: bool = True) -> None:
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self._buffers = Buffers(model)
        first = self._buffers.first
        for name, buffer in zip(self._buffers.names, first, strict=True):
            if buffer.is_complex():
                raise UserError(
                    f"model: the buffer {name} is {buffer.dtype}; expected floating-point numbers, "
                    f"integers or truth values; keep it by torch.view_as_real"
                )
        self._is_float = [b.is_floating_point() for b in first]
        floats = [b for b in first if b.is_floating_point()]
        others = [b for b in first if not b.is_floating_point()]
        kinds = {t.dtype for t in self.parameters + floats}
        if kinds not in ({torch.float32}, {torch.float64}):
            names = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
            raise UserError(
                f"model: its parameters and buffers are of type {names or 'none'}; expected "
                f"float32, or float64, throughout (precision: bfloat16 casts by itself)"
            )
        self.dtype = kinds.pop()
        self.device = self.parameters[0].device
        if not gradients:
            self.parameters = []
        self.gradients = sum(p.numel() for p in self.parameters)
        self._shapes = [b.shape for b in first]
        self._lengths = [[b.numel() for b in some] for some in (floats, others)]
        start, middle = self.gradients, self.gradients + sum(self._lengths[0])
        self._ends = start, middle, middle + sum(self._lengths[1])
        self.length = self._ends[-1]
        self._views: dict[int, list[torch.Tensor]] = {}

    # Gradients and parameters.

    def attach(self, flat: torch.Tensor) -> None:
        """Make `flat` the place where backward leaves the gradients."""
        views = self._views.get(flat.data_ptr())
        if views is None:
            views = self._views[flat.data_ptr()] = self._make_views(flat)
        for parameter, view in zip(self.parameters, views, strict=True):
            parameter.grad = view

    def detached(self, flat: torch.Tensor) -> list[int]:
        """Return which parameters have another gradient, or none, than `attach(flat)` gave them."""
        views = self._views[flat.data_ptr()]
        if all(map(is_, map(_grad, self.parameters), views)):  # in C: each shard asks twice
            return []
        return [n for n, p in enumerate(self.parameters) if p.grad is not views[n]]

    def forget(self) -> None:
        """Forget the places that `attach` has made ready: no other has them any more."""
        self._views.clear()

    def hold(self, flat: torch.Tensor) -> None:
        """Move the parameters to `flat`, in the place of their gradients."""
        for parameter, view in zip(self.parameters, self._make_views(flat), strict=True):
            view.copy_(parameter.detach())
            parameter.data = view

    def take(self, flat: torch.Tensor) -> None:
        """Set the parameters to what `flat` holds in the place of their gradients."""
        for parameter, view in zip(self.parameters, self._make_views(flat), strict=True):
            parameter.data.copy_(view)

    def _make_views(self, flat: torch.Tensor) -> list[torch.Tensor]:
        # With the parameter's own strides: fused optimizers walk both alike. A parameter's elements
        # lie side by side (`models.layout` has seen to it), so its view takes as many places.
        views, offset = [], 0
        for p in self.parameters:
            views.append(flat[offset : offset + p.numel()].as_strided(p.shape, p.stride()))
            offset += p.numel()
        return views

    def divide(self, flat: torch.Tensor, items: float, shards: int) -> None:
        """Make means of sums: of gradients over the items, of buffers' changes over the shards."""
        flat[: self.gradients] /= items
        flat[self.gradients : self.length] /= shards

    # Buffers.

    def read(self, buffers: Iterable[torch.Tensor] | None = None) -> Statistics:
        """Return a copy of the model's buffers, or of `buffers` in their order.

        Raises:
            UserError: one of them is not of the size that it had at the start.
        """
        found = list(self._buffers.now() if buffers is None else buffers)
        for name, buffer, shape in zip(self._buffers.names, found, self._shapes, strict=True):
            if buffer is None or buffer.shape != shape:
                was = tuple(shape), "gone" if buffer is None else tuple(buffer.shape)
                raise UserError(
                    f"model: the buffer {name} was {was[0]} and is {was[1]} after a forward pass; "
                    f"expected buffers to keep their shapes"
                )
        floats: list[torch.Tensor] = []
        others: list[torch.Tensor] = []
        for buffer, is_float in zip(found, self._is_float, strict=True):
            (floats if is_float else others).append(buffer.detach().reshape(-1))
        return self._joined(floats, self.dtype), self._joined(others, torch.int64)

    def _joined(self, pieces: list[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        nothing = torch.empty(0, dtype=dtype, device=self.device)
        return torch.cat([nothing, *(piece.to(dtype) for piece in pieces)])

    def restore(self, before: Statistics) -> None:
        """Set the model's buffers to what `read` returned, in the tensors that they had first."""
        if not self._shapes:
            return
        pieces = [
            iter(some.split(lengths)) for some, lengths in zip(before, self._lengths, strict=True)
        ]
        self._buffers.restore(
            [
                next(pieces[0 if is_float else 1]).view(shape)
                for is_float, shape in zip(self._is_float, self._shapes, strict=True)
            ]
        )

    def put_changes(
        self, flat: torch.Tensor, before: Statistics, after: Statistics | None = None
    ) -> None:
        """Write to `flat` by how much the buffers, or `after`, differ from `before`.

        Differences, because what does not change (a mask, a table) is to stay as it is to the bit.
        """
        if not self._shapes:
            return
        after = after or self.read()
        floats, others = self._tails(flat)
        floats.copy_(torch.where(after[0] == before[0], 0.0, after[0] - before[0]))
        change = after[1] - before[1]
        # What could not be summed exactly spoils the sum, and `take_changes` says so.
        others.copy_(torch.where(change.abs() > LARGEST_CHANGE, torch.nan, change.to(self.dtype)))

    def take_changes(self, flat: torch.Tensor, before: Statistics) -> None:
        """Set the buffers to `before` and what `flat` says that they changed by.

        Raises:
            UserError: the mean change of an integer is none, or one from infinity is no number.
        """
        if not self._shapes:
            return
        floats, others = self._tails(flat)
        change = others.round()
        if not torch.equal(change, others):
            name = self._odd(change == others, False)
            raise UserError(
                f"model: the buffer {name} counts what differs from shard to shard, so that its "
                f"mean change in a step is no whole number (or is above {LARGEST_CHANGE}); keep it "
                f"in a floating-point buffer"
            )
        # What did not change stays as it is to the bit: -0.0 + 0.0 is 0.0.
        after = torch.where(floats == 0, before[0], before[0] + floats)
        odd = after.isnan()
        if odd.any() and (odd := odd & ~before[0].isnan()).any():
            raise UserError(
                f"model: the buffer {self._odd(~odd, True)} is no number after a step; it takes "
                f"the mean of what shards changed it by, which from infinity is none; begin with a "
                f"finite number, such as what the first batch has"
            )
        self.restore((after, before[1] + change.long()))

    def _odd(self, good: torch.Tensor, floats: bool) -> str:
        """Return the name of the first buffer, of floats or others, that is not all `good`."""
        pairs = zip(self._buffers.names, self._is_float, strict=True)
        names = [name for name, is_float in pairs if is_float == floats]
        pieces = good.split(self._lengths[0 if floats else 1])
        return next(name for name, piece in zip(names, pieces, strict=True) if not piece.all())

    def _tails(self, flat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        start, middle, end = self._ends
        return flat[start:middle], flat[middle:end]
