"""How many bytes a rank sends: counted by hooks on the process groups, whoever calls them."""

import torch.distributed as dist
from torch.distributed import ProcessGroup

from lockstep.torch_private import PreHookArgs, process_groups


def least(operation: str, size: int, ranks: int) -> float:
    """Return the bytes that a rank sends at least in an operation (Thakur et al., "Optimization of
    collective communication operations in MPICH", 2005), whatever the backend does.

    Where one rank has a part of its own (broadcast, reduce, gather, scatter), it is the mean over
    the ranks: their sum is what must be sent.

    Args:
        operation: its name in torch's hooks, such as "ALLREDUCE".
        size: the bytes that this rank puts in.
        ranks: the size of the group.
    """
    if operation == "SEND":
        return size
    share = size * (ranks - 1) / ranks
    if operation.startswith("ALLREDUCE"):  # a reduce-scatter and an all-gather
        return 2 * share
    if operation.startswith("ALLGATHER"):  # its own part to every other rank
        return ranks * share
    return share


class Meter:
    """The bytes that this rank sends while it counts, over every process group that there is."""

    def __init__(self) -> None:
        self.counts = False
        self.begin()

    def begin(self) -> None:
        """Count anew, over all process groups that there are now."""
        self.sent = 0.0
        # Strategies make groups, and so do torch's device meshes.
        for group in process_groups():
            self._watch(group)

    def __enter__(self) -> "Meter":
        self.counts = True
        return self

    def __exit__(self, *_: object) -> None:
        self.counts = False

    def _watch(self, group: ProcessGroup) -> None:
        ranks = dist.get_world_size(group)

        def count(call: PreHookArgs) -> None:
            if not self.counts:
                return
            size = sum(t.numel() * t.element_size() for t in call.input_tensors)
            self.sent += least(call.name.name, size, ranks)

        group.register_pre_hook(id(self), count)
