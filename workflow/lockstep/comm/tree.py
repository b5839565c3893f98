"""Sums over shards along one fixed binary tree, whichever rank holds which shard.

Floating-point addition is not associative, so a sum's bits depend on how it is bracketed. Here the
bracketing depends on the number of shards S alone. Node (0, k) of the tree is shard k's term; node
(l, i) is the sum of nodes (l-1, 2i) and (l-1, 2i+1), or the first alone where the second does not
exist. A rank that holds a contiguous block of shards can add up every node that lies wholly within
its block; the few that remain meet in `all_reduce`. Addition is commutative to the bit, so the
operands' order does not matter. (Stelz et al., "ReproRed", 2024, do the same for MPI_Allreduce;
He et al., "EasyScale", SC 2023, train on virtual workers.)
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass
class Node:
    """The sum at place (level, index) of the tree: a flat tensor."""

    level: int
    index: int
    value: torch.Tensor


def push(stack: list[Node], node: Node) -> list[torch.Tensor]:
    """Add a node to a stack that holds its left neighbours, joining siblings in place.

    Returns the tensors that were added into others and are free again.
    """
    freed = []
    while (
        stack
        and node.index % 2
        and (stack[-1].level, stack[-1].index) == (node.level, node.index - 1)
    ):
        left = stack.pop()
        left.value += node.value
        freed.append(node.value)
        node = Node(node.level + 1, node.index // 2, left.value)
    stack.append(node)
    return freed


def fold(stack: list[Node]) -> torch.Tensor:
    """Return the tree's root, given all S terms: what is left over has no siblings."""
    total = stack.pop().value
    while stack:
        left = stack.pop().value
        left += total
        total = left
    return total


def places(shards: Iterable[int]) -> list[tuple[int, int]]:
    """Return the (level, index) of the nodes that a block of shards adds up to by itself."""
    stack: list[Node] = []
    nothing = torch.empty(0)
    for shard in shards:
        push(stack, Node(0, shard, nothing))
    return [(node.level, node.index) for node in stack]


def block(rank: int, ranks: int, shards: int) -> range:
    """Return the shards of a rank: the `rank`-th of `ranks` equal contiguous blocks."""
    size = shards // ranks
    return range(rank * size, (rank + 1) * size)


class TreeReduce:
    """The sum over all shards, on every rank, with the same bits for any number of ranks.

    Args:
        length: the number of elements of a term.
        shards: S.
        rank, ranks: this rank and how many there are; `ranks` divides `shards`.
        dtype, device: those of the terms.
        group: the process group of those ranks; None: all ranks.
    """

    def __init__(
        self,
        length: int,
        shards: int,
        rank: int,
        ranks: int,
        dtype: torch.dtype,
        device: torch.device,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        self.length, self.shards, self.rank, self.ranks = length, shards, rank, ranks
        self.group = group
        self.places = [places(block(r, ranks, shards)) for r in range(ranks)]
        # Padded so that every rank finishes an equal part of the sum.
        self.part = -(-length // ranks)
        self._spare: list[torch.Tensor] = []
        self.dtype, self.device = dtype, device

    def take(self) -> torch.Tensor:
        """Return a buffer for a term: part x ranks elements, of which the first `length` count."""
        return self._spare.pop() if self._spare else self._empty(self.part * self.ranks)

    def add(self, stack: list[Node], shard: int, term: torch.Tensor) -> None:
        """Put a shard's term on this rank's stack; shards come in ascending order."""
        self._spare += push(stack, Node(0, shard, term))

    def all_reduce(self, stack: list[Node]) -> torch.Tensor:
        """Return the sum of all ranks' stacks (a buffer that the caller gives back by `free`)."""
        if self.ranks == 1:
            nodes = [node.value for node in stack]
            total = fold(stack)
            self._spare += [value for value in nodes if value is not total]
            return total
        if self.ranks == 2 and all(len(some) == 1 for some in self.places):
            # Of two terms there is only one sum, in whatever order a backend adds them.
            (node,) = stack
            stack.clear()
            dist.all_reduce(node.value, group=self.group)
            return node.value
        return self._meet(stack)

    def free(self, buffer: torch.Tensor) -> None:
        """Give a buffer back."""
        self._spare.append(buffer)

    def drop(self) -> None:
        """Keep no buffer: those that were added as terms are their owner's again."""
        self._spare.clear()

    def _empty(self, length: int) -> torch.Tensor:
        return torch.empty(length, dtype=self.dtype, device=self.device)

    def _meet(self, stack: list[Node]) -> torch.Tensor:
        """Each rank finishes the tree for its part of the elements, then all share the parts.

        With one node per rank this sends 2 n (P-1)/P elements, as a ring does.
        """
        part, ranks = self.part, self.ranks
        # To each rank: its part of all nodes here. From each rank: this rank's part of its nodes.
        mine = torch.stack([node.value.view(ranks, part) for node in stack], dim=1).reshape(-1)
        counts = [len(some) for some in self.places]
        theirs = self._empty(sum(counts) * part)
        dist.all_to_all_single(
            theirs,
            mine,
            [count * part for count in counts],
            [len(stack) * part] * ranks,
            group=self.group,
        )
        total = stack[0].value
        self._spare += [node.value for node in stack[1:]]
        stack.clear()
        meeting: list[Node] = []
        everywhere = [place for some in self.places for place in some]
        for (level, index), value in zip(everywhere, theirs.view(-1, part), strict=True):
            push(meeting, Node(level, index, value))
        dist.all_gather_single(total, fold(meeting).contiguous(), group=self.group)
        return total
