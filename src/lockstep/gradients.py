"""The gradients of a training loop of one's own: formed by shard, summed over all ranks.

What would give a rank gradients that no other has is refused where it happens.
"""

import zlib
from collections.abc import Iterator
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn

from lockstep.checkpoint.agreement import check_same, gather
from lockstep.distributed.elastic import together
from lockstep.errors import UserError
from lockstep.metrics import ITEMS, Metrics
from lockstep.reduce.accumulator import Accumulator
from lockstep.reduce.flat import Flat
from lockstep.reduce.tree import TreeReduce
from lockstep.tensors import digest

if TYPE_CHECKING:
    from lockstep.loop import OwnSession
    from lockstep.step import Shard, Step


class Gradients:
    """The gradients of a model's parameters, pass by pass.

    Args:
        session: whose ranks form them.
        model: whose they are.

    Raises:
        UserError: nothing in the model is trained, or it is of mixed or other types.
    """

    def __init__(self, session: "OwnSession", model: nn.Module) -> None:
        self.session, self.model = session, model
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        if not named:
            raise UserError("model: it has no parameter that is trained (requires_grad)")
        self.names = [name for name, _ in named]
        self.parameters = [p for _, p in named]
        self.modules = dict(model.named_modules())
        self.weights = dict(model.named_parameters())  # the frozen ones, too
        flat, world = Flat(model), session.world
        self.tree = TreeReduce(
            flat.length, session.shards, world.rank, world.size, flat.dtype, flat.device
        )
        self.accumulator = Accumulator(model, flat, self.tree)
        self.used = torch.zeros(len(named), dtype=torch.bool)  # by the shards of the pass so far
        self.turn: Shard | None = None
        self.inside = False  # a backward pass of the shard whose turn it is
        self.where = "before the first step"
        self._rehearsed: set[int] = set()
        self._metrics: dict[int, tuple[str, ...]] = {}  # the names that each pass has
        self._compared: set[int] = set()
        self._hooks = [
            p.register_post_accumulate_grad_hook(self._guard(place))
            for place, p in enumerate(self.parameters)
        ]

    def _guard(self, place: int) -> Any:
        def note(_: nn.Parameter) -> None:
            if not self.inside:
                raise UserError(
                    f"{self.where}: a backward pass gives {self.names[place]} a gradient outside "
                    f"of shard.backward(loss, items), which no other rank would have; call that "
                    f"in the loop over shards"
                )
            self.used[place] = True

        return note

    def let_go(self) -> None:
        """Leave the parameters as plain PyTorch has them."""
        for hook in self._hooks:
            hook.remove()
        self.model.zero_grad()

    # A pass over a step's shards.

    def begin(self) -> None:
        """Begin a pass.

        Raises:
            UserError: a parameter is new, or is trained that was not.
        """
        held = {id(p) for p in self.parameters}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and id(parameter) not in held:
                raise UserError(
                    f"model: {name} is new, or was not trained, when the run was made; make the "
                    f"run when the model is as it will be trained"
                )
        self.used.zero_()
        self.versions = self._versions()
        self.accumulator.begin()

    def begin_shard(self, shard: "Shard") -> None:
        """Have the next backward passes be a shard's."""
        self.turn, self.term = shard, self.accumulator.begin_shard()

    def backward(self, shard: "Shard", loss: torch.Tensor) -> None:
        """Do a backward pass of the shard whose turn it is."""
        if shard is not self.turn:
            raise UserError(f"{shard.where}: backward when it is not this shard's turn any more")
        flat = self.accumulator.flat
        if odd := flat.detached(self.term):
            if shard.sums or any(self.parameters[place].grad is not None for place in odd):
                self._refuse_replaced(shard, odd[0])
            flat.attach(self.term)  # zero_grad() has let go of what was zero: it changes nothing
        self.inside = True
        try:
            loss.backward()
        finally:
            self.inside = False

    def _check_done(self, shard: "Shard") -> None:
        if not shard.sums:
            raise UserError(
                f"{shard.where}: shard.backward(loss, items) was not called; call it for each "
                f"shard, with items=0 for one that has nothing to learn from"
            )
        if odd := self.accumulator.flat.detached(self.term):
            self._refuse_replaced(shard, odd[0])

    def _refuse_replaced(self, shard: "Shard", place: int) -> None:
        raise UserError(
            f"{shard.where}: the gradient of {self.names[place]} is not the one that "
            f"shard.backward adds to: zero_grad(), or an assignment to grad, has replaced it, and "
            f"it would count for nothing; leave gradients alone between shard.backward and the end "
            f"of the loop over shards"
        )

    def add(self, shard: "Shard") -> None:
        """Take a shard's gradient, which is done."""
        self._check_done(shard)
        self.accumulator.add(shard.index, self.term)

    def reduce(self, step: "Step", sums: Metrics) -> tuple[dict[str, float], torch.Tensor]:
        """Sum over all shards and ranks, and leave the mean gradients in the parameters.

        A parameter that no shard used has no gradient, as in plain PyTorch.

        Args:
            step: whose pass it is.
            sums: those of this rank's shards, with the items of each loss.

        Returns:
            The sums of the global batch, by name, and those of each shard (float64, S x names).

        Raises:
            RanksLost: on all that are left: some have died before this was done.
        """
        self._check_weights()
        world = self.session.world
        rows, used, total = together(world, lambda: self._exchange(step, sums))
        totals = dict(zip(sums.names or (), rows.sum(dim=0).tolist(), strict=True))
        items = sum(value for name, value in totals.items() if name.startswith(ITEMS))
        if not items:
            raise UserError(f"{self.where}: no shard has any items; expected some in each step")
        self.accumulator.finish(total, items)
        for parameter, uses in zip(self.parameters, used.tolist(), strict=True):
            if not uses:
                parameter.grad = None
        self.tree.free(total)  # its values stay until the next pass takes a buffer
        return totals, rows

    def _versions(self) -> list[int]:
        """Return how often each parameter was changed in place, as autograd counts it."""
        return [*map(attrgetter("_version"), self.weights.values())]

    def _check_weights(self) -> None:
        if (now := self._versions()) != self.versions:
            pairs = zip(self.weights, self.versions, now, strict=True)
            name = next(name for name, before, after in pairs if before != after)
            raise UserError(
                f"{self.where}: {name} was changed in the loop over shards (in place, as clamp_() "
                f"or an Embedding with max_norm does), by each rank after its own shards; change "
                f"weights after that loop"
            )

    def _exchange(
        self, step: "Step", sums: Metrics
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        self._check_metrics(step, sums.names or ())
        world = self.session.world
        modes = torch.zeros(world.size, dtype=torch.float64)
        modes.numpy()[world.rank] = zlib.crc32(bytes(self._modes()))  # exact: others add zeros
        # One message tells every rank what was summed, over what, which parameters were used, and
        # whether all ranks had the model in the same modes.
        message = torch.cat([sums.rows.flatten(), self.used.double(), modes])
        if world.size > 1:
            dist.all_reduce(message)
        rows, used, modes = message.split([sums.rows.numel(), len(self.used), world.size])
        if len({*modes.tolist()}) > 1:
            self._refuse_modes()
        total = self.accumulator.sum(keep=self.session.world.survives)
        return rows.view(sums.rows.shape), used, total

    def _modes(self) -> list[bool]:
        """Return what decides the bits of the model beside tensors: what is trained, and how."""
        trained = [p.requires_grad for p in self.parameters]
        return trained + [one.training for one in self.modules.values()]

    def _refuse_modes(self) -> None:
        """Name what is not in the same mode on all ranks; all call it."""
        names = [f"requires_grad of {name}" for name in self.names]
        names += [f"training of {name or 'the model'}" for name in self.modules]
        check_same({"modes": dict(zip(names, self._modes(), strict=True))}, gather)

    def passes(self) -> list[tuple[str, ...]]:
        """Return the names of the sums of each pass of a step, as far as they are known yet."""
        return [*self._metrics.values()]

    def deal_again(self) -> list[int]:
        """Go on with the ranks that there are now; all of them call it.

        Returns:
            The shards that this one is to do, beside those that it has done in the pass under way.
        """
        self._compared.clear()  # some may be new, and all compare them together
        return self.accumulator.deal_again(self.session.world.rank, self.session.world.size)

    def _check_metrics(self, step: "Step", names: tuple[str, ...]) -> None:
        """Refuse metrics that are not the same on all ranks and in all steps."""
        if step.passes not in self._compared:
            check_same({"metrics": {"names": list(names)}}, gather)
            self._compared.add(step.passes)
        if names != (before := self._metrics.setdefault(step.passes, names)):
            raise UserError(
                f"metrics: {self.where} has {', '.join(names)}, and the one before had "
                f"{', '.join(before)}; give the same ones for each step"
            )

    # The first shard of a rank's first step is done twice.

    def rehearse(self, step: "Step", index: int) -> Iterator["Shard"]:
        """Yield a shard twice, for a try: it must give the same bits.

        A shard is done by whichever rank has it, and again after an interruption: so what is done
        in the loop may depend on its ids, the weights, the buffers and torch's random numbers, and
        on nothing else. What it leaves does not count.
        """
        if step.passes in self._rehearsed:
            return
        self._rehearsed.add(step.passes)
        found = []
        for _ in range(2):
            shard = step.shard(index)
            yield shard
            self._check_done(shard)
            self.accumulator.flat.put_changes(self.term, self.accumulator.before)
            found.append((shard.sums, self.term))
        self._check_weights()
        (sums, term), (sums_again, term_again) = found
        if sums != sums_again or digest(term) != digest(term_again):
            self._say_what_differs(shard, term, term_again)
        self.tree.free(term)
        self.tree.free(term_again)
        self.used.zero_()

    def _say_what_differs(self, shard: "Shard", term: torch.Tensor, again: torch.Tensor) -> None:
        flat = self.accumulator.flat
        sizes = [p.numel() for p in flat.parameters]
        pieces = [values[: flat.gradients].split(sizes) for values in (term, again)]
        odd = [n for n, a, b in zip(self.names, *pieces, strict=True) if not torch.equal(a, b)]
        what = f"the gradient of {odd[0]}" if odd else "a loss, a metric or a buffer"
        raise UserError(
            f"{shard.where}: done twice from the same state, {what} differs; what is done in the "
            f"loop over shards may depend on shard.ids, weights, buffers and torch's random "
            f"numbers alone: not on an iterator, a counter, the clock, NumPy's or Python's random "
            f"numbers, or what was kept from the shard before"
        )
