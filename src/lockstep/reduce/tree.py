"""Sums over shards along one fixed binary tree, whichever rank holds which shard.

Floating-point addition is not associative, so a sum's bits depend on how it is bracketed. Here the
bracketing depends on the number of shards S alone. Node (0, k) of the tree is shard k's term; node
(l, i) is the sum of nodes (l-1, 2i) and (l-1, 2i+1), or the first alone where the second does not
exist. A rank that holds a contiguous block of shards can add up every node that lies wholly within
its block; the few that remain meet in `all_reduce`. Addition is commutative to the bit, so the
operands' order does not matter. (Stelz et al., "ReproRed", 2024, do the same for MPI_Allreduce;
He et al., "EasyScale", SC 2023, train on virtual workers.)
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist

# Bytes that all ranks' nodes have together, up to which it may be the fastest to send them to each,
# and how often that is tried.
SHORT, TRIALS = 2**22, 7


@dataclass
class Node:
    """The sum at place (level, index) of the tree: a flat tensor."""

    level: int
    index: int
    value: torch.Tensor


Way = Callable[[list[Node]], torch.Tensor]
"""How ranks' nodes become the tree's root, on all of them."""


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


Place = tuple[int, int]


def places(shards: Iterable[int], held: Iterable[Place] = ()) -> list[Place]:
    """Return the (level, index) of the nodes that shards add up to by themselves.

    Args:
        shards: in ascending order.
        held: what they are added to.
    """
    nothing = torch.empty(0)
    stack = [Node(level, index, nothing) for level, index in held]
    for shard in shards:
        push(stack, Node(0, shard, nothing))
    return [(node.level, node.index) for node in stack]


def block(rank: int, ranks: int, shards: int) -> range:
    """Return the shards of a rank: the `rank`-th of contiguous blocks as even as can be."""
    return range(rank * shards // ranks, (rank + 1) * shards // ranks)


def _join(nodes: list[Node]) -> torch.Tensor:
    """Return the tree's root, given nodes that have all S shards below them, in any order."""
    stack: list[Node] = []
    for node in sorted(nodes, key=lambda node: node.index << node.level):
        push(stack, node)
    return fold(stack)


class TreeReduce:
    """The sum over all shards, on every rank, with the same bits for any number of ranks.

    All ranks make it together, since they try how the group's own all_reduce adds up.

    Args:
        length: the number of elements of a term.
        shards: S.
        rank, ranks: this rank and how many there are, no more than shards.
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
        self.length, self.shards = length, shards
        self.group = group
        self.dtype, self.device = dtype, device
        self._deal(rank, ranks)

    def _deal(self, rank: int, ranks: int) -> None:
        self.rank, self.ranks = rank, ranks
        self.places = self._blocks = [places(block(r, ranks, self.shards)) for r in range(ranks)]
        # Padded so that every rank finishes an equal part of the sum.
        self.part = -(-self.length // ranks)
        self._spare: list[torch.Tensor] = []
        self.way = self._choose()

    def deal_again(self, rank: int, ranks: int, stack: list[Node]) -> list[int]:
        """Go on with the ranks that are left; all of them call it together.

        Args:
            rank, ranks: this one among them.
            stack: what it has added up of the sum under way.

        Returns:
            The shards that it is to add for that sum: those that nobody has are shared evenly.
        """
        held = [(node.level, node.index) for node in stack]
        everyones: list[list[Place]] = [[] for _ in range(ranks)]
        dist.all_gather_object(everyones, held, group=self.group)
        self._deal(rank, ranks)
        for node in stack:  # terms are padded otherwise
            term = self.take()
            term[: self.length] = node.value[: self.length]
            node.value = term
        there = {shard for some in everyones for place in some for shard in self._under(place)}
        missing = [shard for shard in range(self.shards) if shard not in there]
        more = [[missing[i] for i in block(r, ranks, len(missing))] for r in range(ranks)]
        self.places = [places(new, old) for new, old in zip(more, everyones, strict=True)]
        return more[rank]

    def _under(self, place: Place) -> range:
        """Return the shards whose sum a node is."""
        level, index = place
        return range(index << level, min((index + 1) << level, self.shards))

    def take(self) -> torch.Tensor:
        """Return a buffer for a term: part x ranks elements, of which the first `length` count."""
        return self._spare.pop() if self._spare else self._empty(self.part * self.ranks)

    def add(self, stack: list[Node], shard: int, term: torch.Tensor) -> None:
        """Put a shard's term on this rank's stack; shards come in ascending order."""
        self._spare += push(stack, Node(0, shard, term))

    def all_reduce(self, stack: list[Node]) -> torch.Tensor:
        """Return the sum of all ranks' stacks (a buffer that the caller gives back by `free`)."""
        values = [node.value for node in stack]
        total = self.way(stack) if self.places is self._blocks else self._meet(stack)
        stack.clear()
        self._spare += [value for value in values if value is not total]
        return total

    def all_reduce_a_copy(self, stack: list[Node]) -> torch.Tensor:
        """Do what `all_reduce` does, and leave the stack as it is: a rank may die in it.

        When the sum counts, `clear` is next.
        """
        terms = [self.take().copy_(node.value) for node in stack]
        nodes = zip(stack, terms, strict=True)
        return self.all_reduce([Node(node.level, node.index, term) for node, term in nodes])

    def clear(self, stack: list[Node]) -> None:
        """Take the terms of a sum that is done; ranks have blocks again."""
        self._spare += [node.value for node in stack]
        stack.clear()
        self.places = self._blocks

    def free(self, buffer: torch.Tensor) -> None:
        """Give a buffer back."""
        self._spare.append(buffer)

    def drop(self) -> None:
        """Keep no buffer: those that were added as terms are their owner's again."""
        self._spare.clear()

    def _empty(self, length: int) -> torch.Tensor:
        return torch.empty(length, dtype=self.dtype, device=self.device)

    def _choose(self) -> Way:
        """Return the fastest way that adds along the tree, for this group and length."""
        if self.ranks == 1:
            return fold
        # Where each rank has the root of a subtree, of as many shards, ranks are its leaves.
        level = self.places[0][0][0]
        whole = self.places == [[(level, rank)] for rank in range(self.ranks)]
        if whole and self.ranks & (self.ranks - 1) == 0:
            way = self._native if self._native_is_right() else self._butterfly
        else:
            way = self._meet
        size = self.ranks * self._most() * self.length * self.dtype.itemsize
        return way if size > SHORT or self.ranks == 2 else self._faster(way, self._share)

    def _native_is_right(self) -> bool:
        """Try whether the group's all_reduce gives the tree's bits, on random numbers.

        Of two terms there is only one sum. For more, libraries choose an algorithm by length and
        number of ranks: recursive doubling and halving follow the tree, rings do not.
        """
        if self.ranks == 2:
            return True
        draw = torch.Generator().manual_seed(self.rank)
        same = True
        for _ in range(-(-256 // self.length)):  # few numbers may agree by chance
            size = 10.0 ** torch.randint(-6, 7, (self.length,), generator=draw)
            one, other = self.take().zero_(), self.take()
            one[: self.length] = torch.randn(self.length, generator=draw) * size
            other.copy_(one)
            for way, term in ((self._native, one), (self._butterfly, other)):
                way([Node(0, 0, term)])
            same = same and torch.equal(one, other)
            self._spare += [one, other]
        self.drop()
        verdict = torch.tensor(float(same), device=self.device)
        dist.all_reduce(verdict, dist.ReduceOp.MIN, group=self.group)
        return bool(verdict.item())

    def _faster(self, *ways: Way) -> Way:
        """Return the way that takes less time here, the same one on all ranks."""
        seconds: list[list[float]] = [[] for _ in ways]
        for _ in range(TRIALS):  # in turns, for other work to meet them alike
            for way, times in zip(ways, seconds, strict=True):
                nodes = [Node(*place, self.take().zero_()) for place in self.places[self.rank]]
                started = time.perf_counter()
                way(nodes)
                times.append(time.perf_counter() - started)
                self._spare += [node.value for node in nodes]
        self.drop()
        slowest = torch.tensor(
            [sorted(times)[TRIALS // 2] for times in seconds], device=self.device
        )
        dist.all_reduce(slowest, dist.ReduceOp.MAX, group=self.group)
        return ways[int(slowest.argmin())]

    def _native(self, stack: list[Node]) -> torch.Tensor:
        (node,) = stack
        dist.all_reduce(node.value, group=self.group)
        return node.value

    def _butterfly(self, stack: list[Node]) -> torch.Tensor:
        """Recursive halving and doubling (Thakur et al., "Optimization of collective communication
        operations in MPICH", 2005), nearest ranks first: siblings meet before cousins.

        Sends 2 n (P-1)/P elements in 2 log2 P messages; needs a buffer of n/2.
        """
        (node,) = stack
        spare = self.take()
        pieces = [node.value]
        for distance in self._distances():
            low, high = pieces[-1].chunk(2)
            keep, give = (high, low) if self.rank & distance else (low, high)
            arrived = spare[: len(keep)]
            self._swap(self.rank ^ distance, give, arrived)
            keep += arrived
            pieces.append(keep)
        for distance in reversed(self._distances()):
            piece = pieces.pop()
            low, high = pieces[-1].chunk(2)
            self._swap(self.rank ^ distance, piece, low if self.rank & distance else high)
        self._spare.append(spare)
        return node.value

    def _distances(self) -> list[int]:
        return [1 << level for level in range(self.ranks.bit_length() - 1)]

    def _swap(self, other: int, sent: torch.Tensor, received: torch.Tensor) -> None:
        ops = [
            dist.P2POp(dist.isend, sent, group=self.group, group_peer=other),
            dist.P2POp(dist.irecv, received, group=self.group, group_peer=other),
        ]
        for work in dist.batch_isend_irecv(ops):
            work.wait()

    def _most(self) -> int:
        """Return how many nodes the rank with most of them has."""
        return max(len(some) for some in self.places)

    def _share(self, stack: list[Node]) -> torch.Tensor:
        """Every rank gets all ranks' nodes, and finishes the tree by itself: one message in place
        of several, for what is short."""
        mine = self._empty(self._most() * self.length).view(-1, self.length)
        for row, node in zip(mine, stack, strict=False):
            row.copy_(node.value[: self.length])
        everyones = self._empty(self.ranks * mine.numel())
        dist.all_gather_single(everyones, mine.view(-1), group=self.group)
        nodes = [
            Node(level, index, value)
            for some, values in zip(
                self.places, everyones.view(self.ranks, *mine.shape), strict=True
            )
            for (level, index), value in zip(some, values, strict=False)
        ]
        total = stack[0].value
        total[: self.length] = _join(nodes)
        return total

    def _meet(self, stack: list[Node]) -> torch.Tensor:
        """Each rank finishes the tree for its part of the elements, then all share the parts.

        For any number of ranks. With one node a rank this sends 2 n (P-1)/P elements, as a ring
        does; needs a buffer of n for each node that a rank may have.
        """
        part, ranks = self.part, self.ranks
        arrived = []
        for j in range(self._most()):
            # The j-th node of each rank that has so many: its parts to the ranks that finish them.
            counts = [part if j < len(some) else 0 for some in self.places]
            mine = stack[j].value if j < len(stack) else self._empty(0)
            theirs = self._empty(sum(counts))
            splits = [part if j < len(stack) else 0] * ranks
            dist.all_to_all_single(theirs, mine, counts, splits, group=self.group)
            arrived.append(iter(theirs.split(part)))
        nodes = [
            Node(level, index, next(values))
            for some in self.places
            for (level, index), values in zip(some, arrived, strict=False)
        ]
        total = stack[0].value if stack else self.take()
        dist.all_gather_single(total, _join(nodes).contiguous(), group=self.group)
        return total


class GatherReduce:
    """What TreeReduce does, for short terms: every rank gathers all S of them. Rank r has the
    shards r, r + P, r + 2P, ...

    Args:
        length: the number of elements of a term.
        shards: S.
        ranks: P, which divides S.
        dtype, device: those of the terms.
    """

    def __init__(
        self, length: int, shards: int, ranks: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.length, self.shards, self.ranks = length, shards, ranks
        self.dtype, self.device = dtype, device

    def take(self) -> torch.Tensor:
        """Return a buffer for a term."""
        return torch.empty(self.length, dtype=self.dtype, device=self.device)

    def add(self, stack: list[Node], shard: int, term: torch.Tensor) -> None:
        """Put a shard's term on this rank's stack; shards come in ascending order."""
        stack.append(Node(0, shard, term))

    def all_reduce(self, stack: list[Node]) -> torch.Tensor:
        """Return the sum of all ranks' stacks, and leave those as they are."""
        if not self.length:  # a model without buffers
            return self.take()
        mine = torch.stack([node.value for node in stack])
        everyones = mine.new_empty(self.shards, self.length)
        dist.all_gather_single(everyones, mine)
        in_order = everyones.view(self.ranks, -1, self.length).transpose(0, 1).flatten(0, 1)
        return _join([Node(0, shard, term) for shard, term in enumerate(in_order)])

    all_reduce_a_copy = all_reduce

    def clear(self, stack: list[Node]) -> None:
        """Take the terms of a sum that is done."""
        stack.clear()
