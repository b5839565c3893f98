"""A program for any number of ranks: every collective, over MPI, gives what was computed locally.

The numbers are small integers, so that all types of element and all orders of addition are exact,
and what Gloo can do as well is compared with what Gloo gives, bit by bit.
"""

from functools import reduce
from itertools import product
from operator import and_, mul, or_, xor

import torch
import torch.distributed as dist

from lockstep.distributed.rendezvous import from_mpi

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
COMPLEX = [torch.complex64, torch.complex128]
INTEGERS = [
    getattr(torch, f"{sign}int{bits}") for sign, bits in product(("", "u"), (8, 16, 32, 64))
]
DTYPES = [*FLOATS, *COMPLEX, *INTEGERS, torch.bool]
LAYOUTS = ["contiguous", "transposed", "strided", "0-dim", "empty"]
MOVES = [
    "broadcast",
    "all_gather",
    "all_gather_single",
    "all_gather_coalesced",
    "gather",
    "scatter",
    "all_to_all",
    "all_to_all_single",
    "all_to_all_single_unequal",
]
REDUCTIONS = ["all_reduce", "reduce", "reduce_scatter", "reduce_scatter_single"]
OPS = {
    "SUM": sum,
    "PRODUCT": lambda terms: reduce(mul, terms),
    "MIN": lambda terms: torch.stack(terms).amin(0),
    "MAX": lambda terms: torch.stack(terms).amax(0),
    "AVG": lambda terms: sum(terms) // len(terms),
    "BAND": lambda terms: reduce(and_, terms),
    "BOR": lambda terms: reduce(or_, terms),
    "BXOR": lambda terms: reduce(xor, terms),
}
ARITHMETIC = ["SUM", "PRODUCT", "MIN", "MAX", "AVG"]


def numbers(sender: int, receiver: int) -> torch.Tensor:
    """Return the 12 integers in 0..3 that one rank has for another."""
    return (torch.arange(12) * 7 + sender * 5 + receiver * 3) // 2 % 4


def laid(values: torch.Tensor, layout: str, dtype: torch.dtype) -> torch.Tensor:
    """Return a tensor with these values (int64, 12) in some layout and type."""
    table = values.view(3, 4).to(dtype)
    if layout == "transposed":
        return table.t().contiguous().t()
    if layout == "strided":
        wide = torch.zeros(3, 8, dtype=dtype)
        wide[:, ::2] = table
        return wide[:, ::2]
    if layout == "0-dim":
        return table[0, 0].clone()
    return table[:0] if layout == "empty" else table


def joined(tensors: list[torch.Tensor], layout: str) -> torch.Tensor:
    """Return tensors one after another along dimension 0, in some layout."""
    whole = torch.cat([torch.atleast_1d(tensor) for tensor in tensors])
    if layout == "transposed":
        return whole.t().contiguous().t()
    return whole


def rows(sender: int, receiver: int) -> int:
    """Return how many rows of its three one rank sends to another, where they are unequal."""
    return (sender + 2 * receiver) % 4 % 3


def do(name: str, op: str, layout: str, dtype: torch.dtype, later: bool, group: object) -> list:
    """Do a collective; return what this rank received."""
    me, size = dist.get_rank(), dist.get_world_size()
    factor = size if op == "AVG" else 1
    mine = laid(numbers(me, 0) * factor, layout, dtype)
    out = laid(torch.zeros(12, dtype=torch.int64), layout, dtype)
    outs = [out.clone() for _ in range(size)]
    given = [laid(numbers(me, rank) * factor, layout, dtype) for rank in range(size)]
    whole = joined(outs, layout)
    more = {"group": group, "async_op": later}
    if name in REDUCTIONS:
        more["op"] = getattr(dist.ReduceOp, op)
    if name == "broadcast":
        work, received = dist.broadcast(mine, size - 1, **more), [mine]
    elif name == "all_gather":
        work, received = dist.all_gather(outs, mine, **more), outs
    elif name == "all_gather_single":
        work, received = dist.all_gather_single(whole, mine, **more), [whole]
    elif name == "all_gather_coalesced":
        lists = [[torch.empty_like(t) for t in (mine, given[1])] for _ in range(size)]
        work = dist.all_gather_coalesced(lists, [mine, given[1]], **more)
        received = [tensor for pair in lists for tensor in pair]
    elif name == "gather":
        work = dist.gather(mine, outs if me == 0 else None, 0, **more)
        received = outs if me == 0 else []
    elif name == "scatter":
        work = dist.scatter(out, given if me == size - 1 else None, size - 1, **more)
        received = [out]
    elif name == "all_to_all":
        work, received = dist.all_to_all(outs, given, **more), outs
    elif name == "all_to_all_single":
        work = dist.all_to_all_single(whole, joined(given, layout), **more)
        received = [whole]
    elif name == "all_to_all_single_unequal":
        sent = [rows(me, rank) for rank in range(size)]
        incoming = [rows(rank, me) for rank in range(size)]
        parts = [tensor[:count] for tensor, count in zip(given, sent, strict=True)]
        whole = joined(
            [tensor[:count] for tensor, count in zip(outs, incoming, strict=True)], layout
        )
        work = dist.all_to_all_single(whole, joined(parts, layout), incoming, sent, **more)
        received = [whole]
    elif name == "all_reduce":
        work, received = dist.all_reduce(mine, **more), [mine]
    elif name == "reduce":
        work, received = dist.reduce(mine, size - 1, **more), [mine] if me == size - 1 else []
    elif name == "reduce_scatter":
        work, received = dist.reduce_scatter(out, given, **more), [out]
    elif name == "reduce_scatter_single":
        work = dist.reduce_scatter_single(out, joined(given, layout), **more)
        received = [out]
    if later:
        work.wait()
        assert work.is_completed() if isinstance(work, dist.Work) else work.done()
    return received


def expected(name: str, op: str, layout: str, dtype: torch.dtype) -> list:
    """Return what this rank should receive, computed here."""
    me, size = dist.get_rank(), dist.get_world_size()
    ranks = range(size)
    mine = [laid(numbers(rank, 0), layout, dtype) for rank in ranks]
    to_me = [laid(numbers(rank, me), layout, dtype) for rank in ranks]
    if name == "broadcast":
        return [mine[-1]]
    if name == "all_gather":
        return mine
    if name == "all_gather_single":
        return [joined(mine, layout)]
    if name == "all_gather_coalesced":
        second = [laid(numbers(rank, 1), layout, dtype) for rank in ranks]
        return [tensor for pair in zip(mine, second, strict=True) for tensor in pair]
    if name == "gather":
        return mine if me == 0 else []
    if name == "scatter":
        return [laid(numbers(size - 1, me), layout, dtype)]
    if name == "all_to_all":
        return to_me
    if name == "all_to_all_single":
        return [joined(to_me, layout)]
    if name == "all_to_all_single_unequal":
        return [joined([tensor[: rows(rank, me)] for rank, tensor in enumerate(to_me)], layout)]
    receiver = me if name.startswith("reduce_scatter") else 0
    factor = size if op == "AVG" else 1
    terms = [numbers(rank, receiver) * factor for rank in ranks]
    if dtype is torch.bool:
        terms = [term.bool().long() for term in terms]
    total = laid(OPS[op](terms), layout, dtype)
    return [] if name == "reduce" and me != size - 1 else [total]


def same(ours: list, theirs: list) -> bool:
    """Return whether two lists of tensors have the same types, shapes and bits."""
    return len(ours) == len(theirs) and all(
        a.dtype == b.dtype and a.shape == b.shape and a.tolist() == b.tolist()
        for a, b in zip(ours, theirs, strict=True)
    )


def cases() -> list[tuple[str, str, torch.dtype]]:
    moves = [(name, "", dtype) for name in MOVES for dtype in DTYPES]
    ops = [(op, dtype) for op in ARITHMETIC for dtype in FLOATS + INTEGERS]
    ops += [(op, dtype) for op in ("SUM", "AVG") for dtype in COMPLEX]
    ops += [(op, dtype) for op in ("BAND", "BOR", "BXOR") for dtype in [*INTEGERS, torch.bool]]
    ops += [(op, torch.bool) for op in ("SUM", "PRODUCT", "MIN", "MAX")]
    return moves + [(name, op, dtype) for name in REDUCTIONS for op, dtype in ops]


def main() -> None:
    store, rank, size = from_mpi()
    dist.init_process_group("cpu:mpi4py", store=store, rank=rank, world_size=size)
    gloo = dist.new_group(backend="gloo")
    compared, refused = set(), set()
    for name, op, dtype in cases():
        for layout, later in product(LAYOUTS, (False, True)):
            if name.endswith("unequal") and layout in ("0-dim", "empty"):
                continue  # no rows to share
            case = (name, op, layout, dtype, later)
            right, ours = expected(name, op, layout, dtype), do(*case, None)
            assert same(ours, right), f"{case}: {ours}, expected {right}"
            if layout != "contiguous":
                continue  # Gloo takes some others, and gives wrong values for them
            try:
                theirs = do(*case, gloo)
            except (RuntimeError, ValueError):
                refused.add((name, op, dtype))  # a type or an operation that Gloo does not have
                continue
            assert same(ours, theirs), f"{case}: {ours}, Gloo has {theirs}"
            compared.add((name, op, dtype))
    dist.barrier()
    if dist.get_rank() == 0:
        print(f"{len(compared)} as Gloo has them, and {len(refused)} that Gloo does not have")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
