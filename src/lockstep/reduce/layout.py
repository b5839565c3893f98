"""How a model's parameters and buffers lie in memory: each by itself, without gaps.

What works on parameters (flat gradients, replicas, shards of FSDP, fused optimizers) takes for
granted that an element belongs to one of them alone, and that the elements lie side by side.
"""

import copy
import itertools
from typing import Any

import torch
from torch import nn

from lockstep.errors import UserError
from lockstep.reduce.buffers import Buffers
from lockstep.torch_private import tree_leaves


def settle(model: nn.Module) -> None:
    """Give each parameter and buffer memory of its own, without gaps.

    What is cut out of a larger tensor (`nn.Parameter(u[:, :r])`) is copied. What lies without gaps,
    in whatever order, stays as it is.

    Raises:
        UserError: two tensors that are not one have an element in common, or a parameter was
            expanded: copies would not change with one another any more.
    """
    for name, parameter in model.named_parameters():
        if not is_dense(parameter):
            places = _places(parameter)
            if len(places.unique()) < len(places):
                raise UserError(
                    f"model: elements of {name} share memory with one another (expand); call "
                    f"clone() before it becomes a parameter"
                )
    _refuse_shared(dict([*model.named_parameters(), *model.named_buffers()]))
    for parameter in model.parameters():
        if not is_dense(parameter):
            parameter.data = parameter.data.contiguous()
    buffers = Buffers(model)
    buffers.put([b if is_dense(b) else b.contiguous() for b in buffers.first])


def move(model: nn.Module, device: torch.device) -> None:
    """Bring a model to a device, channels last; a buffer under two names stays one."""
    buffers = Buffers(model)
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    buffers.put(buffers.now())


def copy_of(model: nn.Module) -> nn.Module:
    """Return a copy of a model, of which modules may keep tensors of their last forward pass."""
    kept = tree_leaves([list(vars(module).values()) for module in model.modules()])
    behind = [t for t in kept if isinstance(t, torch.Tensor) and not t.is_leaf]
    return copy.deepcopy(model, {id(t): t.detach().clone() for t in behind})


def is_dense(tensor: torch.Tensor) -> bool:
    """Return whether a tensor's elements fill the memory that it spans, each place once."""
    expected = 1
    for step, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if step != expected:
                return False
            expected *= size
    return True


def _refuse_shared(named: dict[str, torch.Tensor]) -> None:
    """Refuse tensors that have elements in common."""
    by_storage: dict[int, list[tuple[Any, Any, str]]] = {}
    for name, tensor in named.items():
        if tensor.numel():
            steps = zip(tensor.shape, tensor.stride(), strict=True)
            end = tensor.storage_offset() + sum((n - 1) * step for n, step in steps) + 1
            some = by_storage.setdefault(tensor.untyped_storage().data_ptr(), [])
            some.append((tensor.storage_offset(), end, name))
    for some in by_storage.values():
        for (_, end, one), (start, _, other) in itertools.combinations(sorted(some), 2):
            if start < end and torch.isin(_places(named[one]), _places(named[other])).any():
                raise UserError(
                    f"model: {one} and {other} share memory and are two tensors; assign one "
                    f"nn.Parameter to both names to tie them, or clone() one of them"
                )


def _places(tensor: torch.Tensor) -> torch.Tensor:
    """Return the place of each of a tensor's elements in its storage (int64, flat)."""
    places = torch.full(tensor.shape, tensor.storage_offset())
    for axis, (size, step) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        shape = [1] * tensor.ndim
        shape[axis] = size
        places += (torch.arange(size) * step).view(shape)
    return places.flatten()
