"""Sums by name over what was trained on: losses, items, right answers.

Each shard has its own running sums, in float64, to which it adds in the order of the steps. Over
shards they are added at the end, in the shards' order. So a sum depends neither on how many ranks
there are nor on when it was asked for, saved, or taken on from.
"""

from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist

from lockstep.errors import UserError

# What the items of a loss are called among the sums of a loop of one's own, before its name.
ITEMS = "items of "


class Metrics:
    """Running sums of each shard (float64, S x names).

    Args:
        shards: S.
        mine: the shards whose sums are this rank's to add to; None: every rank has all of them.
        names: what is summed; None: what the first `add` has.
    """

    def __init__(
        self, shards: int, mine: Iterable[int] | None, names: Iterable[str] | None = None
    ) -> None:
        self.shards, self.mine = shards, None if mine is None else tuple(mine)
        self.names: tuple[str, ...] | None = None if names is None else tuple(names)
        self.rows = torch.zeros(shards, len(self.names or ()), dtype=torch.float64)

    def add(self, shard: int, sums: Mapping[str, float]) -> None:
        """Add to the sums of a shard.

        Raises:
            UserError: there are others than there were the first time.
        """
        if self.names is None:
            self.names = tuple(sums)
            self.rows = torch.zeros(self.shards, len(self.names), dtype=torch.float64)
        if sums.keys() != set(self.names):
            raise UserError(
                f"metrics: shard {shard} has {', '.join(sums)}, and shards had "
                f"{', '.join(self.names)} before; give the same ones for each shard and step"
            )
        self.rows.numpy()[shard] += [sums[name] for name in self.names]  # a tensor takes 10 us

    def add_all(self, names: Iterable[str], rows: torch.Tensor) -> None:
        """Add to the sums of all shards (float64, S x names).

        Raises:
            UserError: there are others than there were the first time.
        """
        names = tuple(names)
        if self.names is None:
            self.names, self.rows = names, torch.zeros_like(rows)
        if names != self.names:
            raise UserError(
                f"metrics: a step has {', '.join(names)}, and steps had {', '.join(self.names)} "
                f"before; do as many passes, with the same metrics, in each step"
            )
        self.rows += rows

    def gather(self) -> torch.Tensor:
        """Return the sums of all shards (float64, S x names), on all ranks; all call it."""
        rows = self.rows.clone()
        if self.mine is not None and dist.get_world_size() > 1:
            dist.all_reduce(rows)  # a shard is one rank's: to its row the others add zeros
        return rows

    def totals(self) -> dict[str, float]:
        """Return the sums over all shards, by name, on all ranks; all call it together."""
        return dict(zip(self.names or (), self.gather().sum(dim=0).tolist(), strict=True))

    def here(self) -> dict[str, float]:
        """Return the sums, by name, over the shards whose rows this rank has."""
        return dict(zip(self.names or (), self.rows.sum(dim=0).tolist(), strict=True))

    def load(self, names: Iterable[str], rows: torch.Tensor) -> None:
        """Go on from what `gather` returned, with the rows of this rank's shards."""
        self.names, self.rows = tuple(names), torch.zeros_like(rows)
        for shard in range(self.shards) if self.mine is None else self.mine:
            self.rows[shard] = rows[shard]

    def reset(self) -> None:
        """Begin anew."""
        self.rows.zero_()
