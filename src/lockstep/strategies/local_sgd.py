"""local_sgd: a replica for each shard, averaged every H steps, or only once, after training.

Replicas train apart, each with its own optimizer on its own shard's micro-batches, and communicate
H times less often than with sync_sgd (Stich, "Local SGD converges fast and communicates little",
ICLR 2019; McMahan et al., "Communication-efficient learning of deep networks from decentralized
data", AISTATS 2017). Never before the end is one-shot averaging (Zinkevich et al., "Parallelized
stochastic gradient descent", NIPS 2010). The mean is taken along the fixed tree, so neither it nor
anything else depends on how many ranks hold the replicas.

A rank keeps, for each of its shards, the parameters and the optimizer's state, and one set of
gradients for all. The replicas are the terms of their sum: a rank adds them up in place.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import nn

from lockstep import optimizer
from lockstep.reduce.flat import Flat
from lockstep.reduce.layout import copy_of
from lockstep.reduce.tree import Node, TreeReduce, block
from lockstep.strategies import MakeOptimizer, Setup
from lockstep.strategies.task import MicroBatch, sums_of
from lockstep.tensors import as_bytes


class Replica:
    """A model whose parameters lie in one flat tensor, and its optimizer."""

    def __init__(self, model: nn.Module, make_optimizer: MakeOptimizer, flat: torch.Tensor) -> None:
        self.model, self.flat = model, flat
        self.layout = Flat(model)
        self.layout.hold(flat)
        self.optimizer = make_optimizer(model)


class LocalSGD:
    """The replicas of this rank's shards."""

    def __init__(self, setup: Setup) -> None:
        self.run, self.task, self.world = setup.run, setup.task, setup.world
        world, run, model = setup.world, setup.run, setup.model
        self.shards: Sequence[int] = block(world.rank, world.size, run.shards)
        layout = Flat(model)
        self.tree = TreeReduce(
            layout.length, run.shards, world.rank, world.size, layout.dtype, layout.device
        )
        models = [model, *(copy_of(model) for _ in self.shards[1:])]
        self.replicas = [
            Replica(one, setup.make_optimizer, self.tree.take().zero_()) for one in models
        ]
        self.gradients = torch.zeros(layout.length, dtype=layout.dtype, device=layout.device)
        for replica in self.replicas:
            replica.layout.attach(self.gradients)
        self.common = layout.read()  # what they were when last averaged
        self.equal = True
        self.metrics = sums_of(setup.task, run.shards, self.shards)
        self.communication = 0.0

    def step(self, micro_batches: Sequence[MicroBatch], lr: float) -> None:
        """Step each replica, and average them if it is time."""
        for replica, micro_batch in zip(self.replicas, micro_batches, strict=True):
            self.gradients.zero_()
            loss = self.task(replica.model, [micro_batch])
            loss.value.backward()
            self.gradients /= loss.items
            optimizer.update(replica.optimizer, lr, self.run.clip)
            self.metrics.add(micro_batch.shard, loss.sums())
        self.equal = False
        if self.run.sync_every and (micro_batches[0].step + 1) % self.run.sync_every == 0:
            self._average()

    def _average(self) -> None:
        """Set all replicas to their mean."""
        mean = self._mean([replica.flat for replica in self.replicas])
        for replica in self.replicas:
            if replica.flat is not mean:
                replica.flat.copy_(mean)
            replica.layout.take_changes(mean, self.common)
        self.common = self.replicas[0].layout.read()
        self.equal = True

    def _mean(self, terms: Iterable[torch.Tensor]) -> torch.Tensor:
        """Return the mean of all shards' parameters and of the changes of their buffers.

        `terms` hold this rank's parameters; they are used up, and the mean may be one of them.
        """
        stack: list[Node] = []
        for shard, replica, term in zip(self.shards, self.replicas, terms, strict=True):
            replica.layout.put_changes(term, self.common)
            self.tree.add(stack, shard, term)
        started = time.perf_counter()
        total = self.tree.all_reduce(stack)
        self.communication += time.perf_counter() - started
        self.tree.drop()
        return total.div_(self.run.shards)

    def model_state(self) -> dict[str, torch.Tensor]:
        """Return the mean of the replicas, which stay as they are; that of shard 0 if H is 0."""
        first = self.replicas[0].model
        if self.equal or self.run.one_shot:
            return first.state_dict()
        mean = self._mean(self.tree.take().copy_(replica.flat) for replica in self.replicas)
        model = copy_of(first)
        layout = Flat(model)
        layout.take(mean)
        layout.take_changes(mean, self.common)
        return model.state_dict()

    def optimizer_state(self) -> optimizer.State:
        """Return the state of all replicas' optimizers: each tensor is S x the parameter's."""
        states = [optimizer.state_of(one.optimizer, one.model) for one in self.replicas]
        return {
            name: {key: self._gather([some[name][key] for some in states]) for key in state}
            for name, state in states[0].items()
        }

    def own_state(self) -> dict[str, torch.Tensor]:
        """Return the replicas where they differ (each tensor is S x the model's), and the buffers
        that they had in common last."""
        if self.equal:
            return {}
        states = [replica.model.state_dict() for replica in self.replicas]
        common = {f"common.{place}": buffer for place, buffer in enumerate(self.common)}
        replicas = {
            f"replica.{name}": self._gather([state[name] for state in states]) for name in states[0]
        }
        return {**common, **replicas}

    def load(self, state: optimizer.LazyState, own: Mapping[str, torch.Tensor]) -> None:
        named = [dict(replica.model.named_parameters()) for replica in self.replicas]
        for name, kept in state.items():
            for key, value in kept.items():
                for shard, replica, its in zip(self.shards, self.replicas, named, strict=True):
                    mine = replica.optimizer.state[its[name]]
                    mine[key] = optimizer.like(its[name], value[shard])
        states = [replica.model.state_dict() for replica in self.replicas]
        for name, value in own.items():
            kind, _, rest = name.partition(".")
            if kind == "common":
                self.common[int(rest)].copy_(value)
            elif kind == "replica":
                self.equal = False
                for shard, weights in zip(self.shards, states, strict=True):
                    weights[rest].copy_(value[shard])

    def alike(self) -> dict[str, torch.Tensor]:
        return self.replicas[0].model.state_dict() if self.equal else {}

    def _gather(self, values: list[torch.Tensor]) -> torch.Tensor:
        """Return everyone's values on the CPU of rank 0 (S x the shape), nothing on the others."""
        mine = torch.stack(values).contiguous()
        if self.world.rank:
            dist.send(as_bytes(mine), 0)
            return mine.new_empty(0)
        everyones = mine.new_empty(self.run.shards, *mine.shape[1:])
        everyones[: len(mine)] = mine
        for rank in range(1, self.world.size):
            theirs = block(rank, self.world.size, self.run.shards)
            dist.recv(as_bytes(everyones[theirs.start : theirs.stop]), rank)
        return everyones.cpu()

    def states(self) -> Iterator[tuple[int, dict[str, torch.Tensor]]]:
        """Yield each shard and its replica's state_dict on rank 0; all ranks go through it."""
        for owner, shard in [
            (rank, shard)
            for rank in range(self.world.size)
            for shard in block(rank, self.world.size, self.run.shards)
        ]:
            mine = shard - self.shards[0] if owner == self.world.rank else 0
            state = self.replicas[mine].model.state_dict()
            if owner and self.world.rank in (0, owner):
                for name, value in state.items():
                    if self.world.rank == owner:
                        dist.send(as_bytes(value), 0)
                    else:
                        state[name] = torch.empty_like(value.contiguous())
                        dist.recv(as_bytes(state[name]), owner)
            if self.world.rank == 0:
                yield shard, state
