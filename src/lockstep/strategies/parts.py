"""A rank's part of a parameter, so that what works on it rounds as it does on the whole."""

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

# Vector registers have at most so many elements, and so do the units that threads share out.
COMPANY = 64


class Part:
    """A rank's part of a parameter, in the company that its elements have in the whole.

    Kernels take most elements by vector registers and what is left at the end one by one, which may
    round otherwise. So the part has zeros before and behind, such that an element's place in a
    register, or at the end, is that in the whole tensor as `single` has it.
    """

    def __init__(self, parameter: nn.Parameter, stride: tuple[int, ...]) -> None:
        assert isinstance(parameter.data, DTensor)
        self.parameter = parameter
        self.stride = stride
        shape, rank, ranks = parameter.shape, dist.get_rank(), dist.get_world_size()
        row = parameter.numel() // shape[0]
        rows = -(-shape[0] // ranks)  # of each rank; the last ones have fewer or none
        local = self._local(parameter)
        self.rows = slice(min(rank * rows, shape[0]), min(rank * rows, shape[0]) + len(local))
        first = self.rows.start * row
        end = first + local.numel()
        self.front = first % COMPANY
        length = self.front + local.numel() + min(-end % COMPANY, parameter.numel() - end)
        self.values = nn.Parameter(torch.zeros(length, dtype=local.dtype, device=local.device))
        self.values.grad = torch.zeros_like(self.values)
        self._view(self.values).copy_(local)

    @staticmethod
    def _local(value: Any) -> torch.Tensor:
        return value.detach().to_local()

    def _view(self, values: torch.Tensor) -> torch.Tensor:
        """Return the part of `values` that counts, in the shape of the rank's part."""
        shape = self._local(self.parameter).shape
        return values.detach().as_strided(shape, self.stride, self.front)

    def load(self, items: float) -> None:
        """Take the gradient from the parameter: of its sum over the items the mean."""
        assert self.values.grad is not None
        self._local(self.parameter.grad).div_(items)
        self._view(self.values.grad).copy_(self._local(self.parameter.grad))

    def store(self) -> None:
        """Give the values to the parameter."""
        self._local(self.parameter).copy_(self._view(self.values))

    def norm_of_whole(self) -> torch.Tensor:
        """Return the norm of the whole gradient, laid out as `single` has it."""
        gradient = torch.empty_strided(
            self.parameter.shape,
            self.stride,
            dtype=self.values.dtype,
            device=self.values.device,
        ).copy_(whole(self.parameter.grad))
        return torch._foreach_norm([gradient])[0]

    def part_of(self, whole: torch.Tensor) -> torch.Tensor:
        """Return what `whole_of` made a whole of, laid out as the values are."""
        values = torch.zeros_like(self.values.detach(), dtype=whole.dtype)
        self._view(values).copy_(whole[self.rows])
        return values

    def whole_of(self, values: torch.Tensor) -> torch.Tensor:
        """Return the whole of what an optimizer keeps for each element of `values`."""
        like = self.parameter.data
        assert isinstance(like, DTensor)
        return DTensor.from_local(
            self._view(values).contiguous(),
            like.device_mesh,
            like.placements,
            run_check=False,
            shape=like.shape,
            stride=like.stride(),
        ).full_tensor()


def whole(value: Any) -> torch.Tensor:
    """Return a tensor whole, whether or not it is in parts; all ranks call it."""
    return value.full_tensor() if isinstance(value, DTensor) else value
