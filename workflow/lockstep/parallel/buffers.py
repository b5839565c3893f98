"""A model's buffers by the places that hold them: a forward pass may assign some anew."""

import torch
from torch import nn


class Buffers:
    """The buffers of a model, each by the module and the name under which a pass finds it.

    A module that computes `self.center = ...` puts another tensor in its buffer's place. So places
    are remembered and not tensors, and the tensors that were there first come back by `restore`.
    One tensor under two names counts once, by the first, as in `named_buffers`.

    Args:
        model: whose they are; buffers that are None are not among them.
    """

    def __init__(self, model: nn.Module) -> None:
        named = dict(model.named_buffers())
        self.names = list(named)
        self._first = list(named.values())
        self._places = []
        for name in named:
            path, _, key = name.rpartition(".")
            self._places.append((model.get_submodule(path)._buffers, key))

    def now(self) -> list[torch.Tensor]:
        """Return the tensors that are there now."""
        return [held[key] for held, key in self._places]  # type: ignore[misc]

    def restore(self, values: list[torch.Tensor]) -> None:
        """Put the first tensors back where they were, with these values."""
        if not values:
            return
        for (held, key), tensor in zip(self._places, self._first, strict=True):
            held[key] = tensor
        with torch.no_grad():
            torch._foreach_copy_(self._first, values)
