"""Do the ranks still have the same weights? If not, whose are other?

A bit that flips in one rank's memory, a broken network card, or a model that draws from something
of the rank's own: no error comes of it, and the result is of no run that could be repeated.
"""

import hashlib
import socket
from collections import Counter
from typing import Any

import torch
import torch.distributed as dist

from lockstep.errors import UserError


def check_alike(tensors: dict[str, torch.Tensor], step: int) -> None:
    """Compare, over all ranks, the hashes of what they must have alike; all call it together.

    Args:
        tensors: by name; a rank may lack some that others have.
        step: how many steps are done, for the message.

    Raises:
        UserError: on all ranks: the hashes differ; it names the ranks that most contradict.
    """
    if dist.get_world_size() == 1:
        return  # there is nobody to be other than
    mine = {name: _digest(tensor) for name, tensor in tensors.items()}
    everyones: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyones, (socket.gethostname(), mine))
    names = dict.fromkeys(name for _, some in everyones for name in some)
    for name in names:
        found = {r: some[name] for r, (_, some) in enumerate(everyones) if name in some}
        votes = Counter(found.values())
        if len(votes) > 1:
            common = votes.most_common(1)[0][0]
            odd = [f"{r} ({everyones[r][0]})" for r, value in found.items() if value != common]
            raise UserError(
                f"weights: {name} on rank {', '.join(odd)} is not what it is on the other ranks "
                f"after step {step}; the last checkpoint is from before; look at that host's "
                f"memory and network, and whether the model depends on the rank"
            )


def _digest(tensor: torch.Tensor) -> str:
    data = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
    return hashlib.sha256(data).hexdigest()[:16]
