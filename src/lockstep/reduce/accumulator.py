"""The gradients of a step, shard by shard, summed over all shards along the tree.

A shard's gradient is formed by itself, in a term of its own, from the buffers that the step began
with. So who forms it does not matter, nor does it matter whether it is formed again.
"""

import torch
import torch.distributed as dist
from torch import nn

from lockstep.reduce.flat import Flat, Statistics
from lockstep.reduce.tree import GatherReduce, Node, TreeReduce


class Accumulator:
    """A model's gradients and the changes of its buffers, summed over the shards.

    Args:
        model: whose they are.
        flat: how they lie in a term.
        tree: what sums terms over shards and ranks.
    """

    def __init__(self, model: nn.Module, flat: Flat, tree: TreeReduce | GatherReduce) -> None:
        self.model, self.flat, self.tree = model, flat, tree
        self.is_under_way = False
        """Whether a step has begun and is not done."""
        self.stack: list[Node] = []

    def begin(self) -> None:
        """Begin a step: what was added and not summed is dropped."""
        self.stack = []
        self.is_under_way = True
        self.before: Statistics = self.flat.read()

    def begin_shard(self) -> torch.Tensor:
        """Have the next backward pass leave its gradients in a term, which is returned."""
        self.flat.restore(self.before)
        term = self.tree.take().zero_()
        self.flat.attach(term)
        return term

    def add(self, shard: int, term: torch.Tensor) -> None:
        """Take the term of a shard; shards come in ascending order."""
        self.flat.put_changes(term, self.before)
        self.tree.add(self.stack, shard, term)

    def sum(self, keep: bool = False) -> torch.Tensor:
        """Return the sum over all shards and ranks; all ranks call it.

        Args:
            keep: whether it may be in vain, for a rank may die: what was added stays.
        """
        return (self.tree.all_reduce_a_copy if keep else self.tree.all_reduce)(self.stack)

    def finish(self, total: torch.Tensor, items: float) -> None:
        """End the step: the parameters have the mean gradients, until the tree gets them back by
        `free`; buffers have changed by the mean over the shards of what each saw.

        Args:
            total: what `sum` returned.
            items: what the sum of gradients is divided by: the items of the global batch.
        """
        self.tree.clear(self.stack)
        self.is_under_way = False
        self.flat.divide(total, items, self.tree.shards)
        self.flat.take_changes(total, self.before)
        self.flat.attach(total)

    def deal_again(self, rank: int, ranks: int) -> list[int]:
        """Go on with the ranks that are left: see `TreeReduce.deal_again`."""
        assert isinstance(self.tree, TreeReduce)
        self.flat.forget()
        return self.tree.deal_again(rank, ranks, self.stack)


def total_items(items: float, group: dist.ProcessGroup | None = None) -> float:
    """Return the items of the global batch, given this rank's; all ranks of the group call it."""
    if dist.get_world_size(group) == 1:
        return items
    count = torch.tensor([items], dtype=torch.float64)
    dist.all_reduce(count, group=group)  # exact in any order
    return count.item()
