"""A model's gradients and BatchNorm statistics in one flat tensor: one collective for all."""

import torch
from torch import nn

from lockstep.errors import UserError


class Flat:
    """How a model's gradients, its floating-point buffers and two sums lie in a flat tensor.

    The order is [gradients | buffers | sum of losses, right answers].

    Args:
        model: whose they are.
        gradients: whether gradients are among them.
    """

    def __init__(self, model: nn.Module, gradients: bool = True) -> None:
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.buffers = [b for b in model.buffers() if b.is_floating_point()]
        kinds = {t.dtype for t in self.parameters + self.buffers}
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
        self.statistics = sum(b.numel() for b in self.buffers)
        self.length = self.gradients + self.statistics + 2
        self._views: dict[int, list[torch.Tensor]] = {}

    def attach(self, flat: torch.Tensor) -> None:
        """Make `flat` the place where backward leaves the gradients."""
        views = self._views.get(flat.data_ptr())
        if views is None:
            views = self._views[flat.data_ptr()] = self._make_views(flat)
        for parameter, view in zip(self.parameters, views, strict=True):
            parameter.grad = view

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
        # With the parameter's own strides: fused optimizers walk both alike.
        views, offset = [], 0
        for p in self.parameters:
            views.append(flat[offset : offset + p.numel()].as_strided(p.shape, p.stride()))
            offset += p.numel()
        return views

    def put_changes(
        self,
        flat: torch.Tensor,
        before: list[torch.Tensor],
        after: list[torch.Tensor] | None = None,
    ) -> None:
        """Write to `flat` by how much the floating-point buffers, or `after`, differ from `before`.

        Differences, because what does not change (a mask, a table) is to stay as it is to the bit.
        """
        after = self.buffers if after is None else after
        for view, buffer, value in zip(self._tail(flat), after, before, strict=True):
            view.copy_(torch.where(buffer == value, 0.0, buffer - value))

    def take_changes(self, flat: torch.Tensor, before: list[torch.Tensor]) -> None:
        """Set the floating-point buffers to `before` and what `flat` says that they changed by."""
        for view, buffer, value in zip(self._tail(flat), self.buffers, before, strict=True):
            torch.add(value, view, out=buffer)

    def _tail(self, flat: torch.Tensor) -> list[torch.Tensor]:
        views, offset = [], self.gradients
        for buffer in self.buffers:
            views.append(flat[offset : offset + buffer.numel()].view(buffer.shape))
            offset += buffer.numel()
        return views

    def sums_of(self, flat: torch.Tensor) -> torch.Tensor:
        """Return the view of `flat` that holds [sum of losses, right answers]."""
        return flat[self.gradients + self.statistics : self.length]
