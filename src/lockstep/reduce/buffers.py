"""A model's buffers by the places that hold them: a forward pass may assign some anew."""

from collections.abc import Sequence

import torch
from torch import nn


class Buffers:
    """The buffers of a model, each by the modules and the names under which a pass finds it.

    A module that computes `self.center = ...` puts another tensor in its buffer's place. So places
    are remembered and not tensors, and the tensors that were there first come back by `restore`.

    Args:
        model: whose they are; buffers that are None are not among them.
    """

    def __init__(self, model: nn.Module) -> None:
        named = dict(model.named_buffers())  # each tensor once, by its first name
        self.names, self.first = list(named), list(named.values())
        self._places: dict[torch.Tensor, list[tuple[dict, str]]] = {b: [] for b in self.first}
        for module in model.modules():
            for key, buffer in module._buffers.items():
                if buffer is not None:
                    self._places[buffer].append((module._buffers, key))

    def now(self) -> list[torch.Tensor]:
        """Return the tensors that are there now."""
        return [held[key] for (held, key), *_ in self._places.values()]

    def put(self, tensors: Sequence[torch.Tensor]) -> None:
        """Put other tensors in their places."""
        for places, tensor in zip(self._places.values(), tensors, strict=True):
            for held, key in places:
                held[key] = tensor

    def copies(self) -> list[torch.Tensor]:
        """Return copies of the tensors that are there now."""
        return [buffer.detach().clone() for buffer in self.now()]

    def restore(self, values: Sequence[torch.Tensor]) -> None:
        """Put the first tensors back in their places, with these values."""
        self.put(self.first)
        if self.first:
            with torch.no_grad():
                torch._foreach_copy_(self.first, list(values))
