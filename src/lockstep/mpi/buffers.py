"""Tensors as MPI sees them: an address, a number of elements, a type, and an operation on them."""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from mpi4py import MPI
from torch.distributed import ReduceOp

# MPI counts in C ints: a longer buffer is sent as one element of a derived type.
LIMIT = 2**31 - 1

_INTEGERS = {
    torch.uint8: MPI.UINT8_T,
    torch.uint16: MPI.UINT16_T,
    torch.uint32: MPI.UINT32_T,
    torch.uint64: MPI.UINT64_T,
    torch.int8: MPI.INT8_T,
    torch.int16: MPI.INT16_T,
    torch.int32: MPI.INT32_T,
    torch.int64: MPI.INT64_T,
}
_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)
_FLOATS = {torch.float32: MPI.FLOAT, torch.float64: MPI.DOUBLE}
_COMPLEX = {torch.complex64: MPI.C_FLOAT_COMPLEX, torch.complex128: MPI.C_DOUBLE_COMPLEX}
# MPI has no arithmetic on these: they are reduced in a wider type and rounded once, at the end.
_WIDER = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float8_e4m3fn: torch.float32,
    torch.float8_e4m3fnuz: torch.float32,
    torch.float8_e5m2: torch.float32,
    torch.float8_e5m2fnuz: torch.float32,
    torch.complex32: torch.complex64,
}
# What is only moved is moved by the size of its elements.
_BY_SIZE = {1: MPI.BYTE, 2: MPI.INT16_T, 4: MPI.INT32_T, 8: MPI.INT64_T, 16: MPI.C_DOUBLE_COMPLEX}

_KIND: Any = ReduceOp.RedOpType
_ARITHMETIC = {_KIND.SUM: MPI.SUM, _KIND.AVG: MPI.SUM, _KIND.PREMUL_SUM: MPI.SUM}
_ORDER = {_KIND.MIN: MPI.MIN, _KIND.MAX: MPI.MAX}
_PRODUCT = {_KIND.PRODUCT: MPI.PROD}
_BITWISE = {_KIND.BAND: MPI.BAND, _KIND.BOR: MPI.BOR, _KIND.BXOR: MPI.BXOR}
# Truth values as numbers that cannot leave {0, 1}: their sum is "any", their product "all".
_LOGIC = {
    _KIND.SUM: MPI.LOR,
    _KIND.MAX: MPI.LOR,
    _KIND.BOR: MPI.LOR,
    _KIND.PRODUCT: MPI.LAND,
    _KIND.MIN: MPI.LAND,
    _KIND.BAND: MPI.LAND,
    _KIND.BXOR: MPI.LXOR,
}


@dataclass(frozen=True, slots=True)
class Reduction:
    """A reduce operation of torch's on a type of element, as MPI does it."""

    op: Any
    kind: Any
    dtype: torch.dtype
    """What MPI adds up: the tensor's type, or a wider one."""
    average: bool
    scaled: bool
    factor: Any = None
    """What terms are multiplied by before they are added, where they are scaled."""

    def load(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a buffer with a tensor's values: itself, if MPI can reduce it as it is."""
        if tensor.dtype == self.dtype and as_is(tensor) and self.factor is None:
            return tensor
        buffer = blank(tensor, self.dtype).copy_(tensor.detach())
        return buffer if self.factor is None else buffer.mul_(self.factor)

    def finish(self, buffer: torch.Tensor, ranks: int) -> None:
        """Make the sum that MPI left in the buffer what the operation asks for."""
        if self.average and self.dtype in _UNSIGNED:  # torch does not divide these
            buffer.numpy()[...] //= ranks
        elif self.average:
            rounding = None if buffer.is_floating_point() or buffer.is_complex() else "trunc"
            buffer.detach().div_(ranks, rounding_mode=rounding)


_reductions: dict[tuple[Any, torch.dtype], Reduction] = {}


def reduction(op: Any, dtype: torch.dtype) -> Reduction:
    """Return how MPI does `op`, a ReduceOp or its kind, on elements of a type.

    Raises:
        ValueError: the operation makes no sense on this type.
    """
    kind = getattr(op, "op", op)
    found = _reductions.get((kind, dtype))
    if found is None:
        wide = _WIDER.get(dtype, dtype)
        if wide in _FLOATS:
            table = (_FLOATS, _ARITHMETIC | _PRODUCT | _ORDER)
        elif wide in _COMPLEX:
            table = (_COMPLEX, _ARITHMETIC | _PRODUCT)
        elif wide is torch.bool:
            table = ({torch.bool: MPI.C_BOOL}, _LOGIC)
        else:
            table = (_INTEGERS, _ARITHMETIC | _PRODUCT | _ORDER | _BITWISE)
        kinds, ops = table
        if wide not in kinds or kind not in ops:
            raise ValueError(f"mpi4py: cannot use ReduceOp.{kind.name} with elements of {dtype}")
        average, scaled = kind == _KIND.AVG, kind == _KIND.PREMUL_SUM
        found = Reduction(ops[kind], kinds[wide], wide, average, scaled)
        _reductions[kind, dtype] = found
    return replace(found, factor=op.factor) if found.scaled else found


def as_is(tensor: torch.Tensor) -> bool:
    """Return whether MPI can read and write a tensor where it lies."""
    return (
        tensor.is_cpu
        and tensor.layout is torch.strided
        and tensor.is_contiguous()
        and not tensor.is_conj()
        and not tensor.is_neg()
    )


def blank(tensor: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Return a new buffer on the host for a tensor's values: pinned where it is a GPU's."""
    if tensor.layout is not torch.strided:
        raise ValueError(f"mpi4py: cannot send a tensor of layout {tensor.layout}; expected dense")
    return torch.empty(tensor.shape, dtype=dtype or tensor.dtype, pin_memory=tensor.is_cuda)


def outgoing(tensor: torch.Tensor) -> torch.Tensor:
    """Return a buffer that holds a tensor's values: itself, if MPI can read it."""
    return tensor if as_is(tensor) else blank(tensor).copy_(tensor.detach())


def incoming(tensor: torch.Tensor) -> torch.Tensor:
    """Return a buffer for values that `deliver` brings to a tensor: itself, if MPI can write it."""
    return tensor if as_is(tensor) else blank(tensor)


def deliver(buffer: torch.Tensor, tensor: torch.Tensor) -> None:
    """Copy what arrived to where it belongs, if that is elsewhere."""
    if buffer is not tensor:
        tensor.detach().copy_(buffer.view(tensor.shape))


def moved(buffer: torch.Tensor) -> list[Any]:
    """Return a buffer as mpi4py takes it, for communication that does not look at the elements."""
    return blocks(buffer, 1)


def blocks(buffer: torch.Tensor, number: int) -> list[Any]:
    """Return a buffer as `number` equal blocks, for collectives that send a block to each rank."""
    kind, count = _BY_SIZE[buffer.element_size()], buffer.numel() // number
    if count > LIMIT or buffer.numel() > LIMIT:
        kind, count = span(count, buffer.element_size()), 1
    return [MPI.buffer.fromaddress(buffer.data_ptr(), buffer.nbytes), count, kind]


def parts(buffer: torch.Tensor, counts: list[int]) -> list[Any]:
    """Return a buffer of at most LIMIT elements as parts of unequal size, one a rank."""
    return [
        MPI.buffer.fromaddress(buffer.data_ptr(), buffer.nbytes),
        counts,
        _BY_SIZE[buffer.element_size()],
    ]


def whole_of(buffer: torch.Tensor, kind: Any) -> list[Any]:
    """Return a buffer of at most LIMIT elements as mpi4py takes it for a reduction."""
    return [MPI.buffer.fromaddress(buffer.data_ptr(), buffer.nbytes), buffer.numel(), kind]


def reduced(buffer: torch.Tensor, kind: Any) -> list[list[Any]]:
    """Return a buffer as mpi4py takes it for a reduction, in parts that a C int can count."""
    total = buffer.numel()
    if 0 < total <= LIMIT:
        return [whole_of(buffer, kind)]
    address, size = buffer.data_ptr(), buffer.element_size()
    starts = range(0, total, LIMIT)
    counts = [min(LIMIT, total - start) for start in starts]
    return [
        [MPI.buffer.fromaddress(address + start * size, count * size), count, kind]
        for start, count in zip(starts, counts, strict=True)
    ]


@cache
def span(count: int, size: int) -> Any:
    """Return a committed type of any number of elements of `size` bytes each."""
    kind = _BY_SIZE[size]
    big = kind.Create_contiguous(2**30)
    whole = big.Create_contiguous(count >> 30)
    rest = kind.Create_contiguous(count % 2**30)
    offset = (count >> 30) * 2**30 * kind.Get_size()
    both = MPI.Datatype.Create_struct([1, 1], [0, offset], [whole, rest]).Commit()
    for part in (big, whole, rest):
        part.Free()
    return both
