"""Do all ranks compute the same? If not, whose inputs or whose weights are other?

Before the training: a host with other data, other code or another build, a rank with another flag.
In it: a bit that flips in one rank's memory, a broken network card, or a model that draws from
something of the rank's own. No error comes of any of these, and the result is of no run that could
be repeated.
"""

import json
import socket
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

from lockstep import tensors as state
from lockstep.errors import UserError, in_words
from lockstep.files import json_sha256

# What to do where ranks differ, by what they differ in.
CURES = {
    "flags": "launch all ranks by the same command",
    "data": "let all hosts read the same prepared data",
    "partition": "let all hosts read the same table of shards",
    "versions": "give all hosts the same environment",
    "libraries": "give all hosts the same environment",
    "caps": "export the same variables to all ranks",
    "code": "let all hosts run the same files",
    "metrics": "give the same ones for each shard, whichever rank has it",
    "settings": "give session.run and run.steps the same on all ranks",
    "configuration": "give session.run and run.steps the same on all ranks",
    "modes": "call train(), eval() and requires_grad_() on all ranks alike",
    "initial weights": "the model must depend neither on the rank nor on what one host alone has; "
    "in a script of your own, make it by session.build",
}

# How many ranks a message names.
NAMED = 3


def gather(value: Any) -> list[Any]:
    """Return what all ranks of the process group gave, in their order, on each."""
    everyones: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyones, value)
    return everyones


def check_same(
    mine: Mapping[str, Any], gather: Callable[[Any], list[Any]] = gather, problem: str = ""
) -> None:
    """Compare, over all ranks, what they are about to compute with; all call it together.

    Args:
        mine: this rank's, by the names in CURES; a value or, by name, several.
        gather: gives the values of all ranks to each, in their order.
        problem: what this rank alone has found wrong, if something is.

    Raises:
        UserError: on all ranks: one has a problem; or they differ, in what, which and where.
    """
    found = gather((socket.gethostname(), problem, json_sha256(mine)))
    for rank, (where, wrong, _) in enumerate(found):
        if wrong:
            raise UserError(f"{wrong} (found by rank {rank} on {where})")
    if len({digest for _, _, digest in found}) == 1:
        return
    hosts, everyones = [where for where, _, _ in found], gather(mine)
    for group in mine:
        parts = [_named(some.get(group)) for some in everyones]
        for name in dict.fromkeys(name for part in parts for name in part):
            values = [part.get(name) for part in parts]
            if odd := _odd({rank: json.dumps(value) for rank, value in enumerate(values)}):
                other = next(rank for rank in range(len(values)) if rank not in odd)
                raise UserError(
                    f"{group}: {name} is {in_words(values[odd[0]])} on {_ranks(odd, hosts)}, and "
                    f"{in_words(values[other])} on {_ranks([other], hosts)}; {CURES[group]}"
                )


def _named(part: Any) -> dict[str, Any]:
    return part if isinstance(part, dict) else {"SHA-256": part}


def check_alike(tensors: dict[str, torch.Tensor], step: int) -> None:
    """Compare, over all ranks, the hashes of what they must have alike; all call it together.

    Args:
        tensors: by what they are; a rank may lack some that others have.
        step: how many steps are done, for the message.

    Raises:
        UserError: on all ranks: the hashes differ; it names the ranks that most contradict.
    """
    if dist.get_world_size() == 1:
        return  # there is nobody to be other than
    mine = {name: state.digest(tensor)[:16] for name, tensor in tensors.items()}
    # One digest of all of it first: at a thousand ranks, everyone's of each would be megabytes. The
    # smallest number and the smallest complement are of one number where all ranks have that one.
    whole = bytes.fromhex(json_sha256(mine))
    own = torch.frombuffer(bytearray(whole), dtype=torch.int64)
    both = torch.stack([own, ~own])
    dist.all_reduce(both, dist.ReduceOp.MIN)
    if torch.equal(both[0], ~both[1]):
        return
    everyones = gather((socket.gethostname(), mine))
    hosts = [host for host, _ in everyones]
    for name in dict.fromkeys(name for _, some in everyones for name in some):
        found = {rank: some[name] for rank, (_, some) in enumerate(everyones) if name in some}
        if odd := _odd(found):
            raise UserError(
                f"weights: {name} on {_ranks(odd, hosts)} is not what it is on the other ranks "
                f"after step {step}; the last checkpoint is from before; look at that host's "
                f"memory and network, and whether the model depends on the rank, or was called in "
                f"training mode on one rank alone"
            )


def _odd(values: Mapping[int, Any]) -> list[int]:
    """Return the ranks that have another value than most."""
    common = Counter(values.values()).most_common(1)[0][0]
    return [rank for rank, value in values.items() if value != common]


def _ranks(ranks: Sequence[int], hosts: Sequence[str]) -> str:
    more = f" and {len(ranks) - NAMED} more" if len(ranks) > NAMED else ""
    return f"rank {', '.join(f'{rank} ({hosts[rank]})' for rank in ranks[:NAMED])}{more}"
