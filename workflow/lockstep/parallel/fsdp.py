"""fsdp: parameters, gradients and the optimizer's state in parts, one on each rank (FSDP2).

After Rajbhandari et al., "ZeRO" (2020) and Zhao et al., "PyTorch FSDP" (2023), by torch's
`fully_shard` of each block and of the model. To have the bits of `single`, each micro-batch's
gradients go to the ranks whose parts they are as they are, and are added there along the tree over
the shards; and what works on a part finds it as it lies in the whole.
"""

import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.fsdp._fully_shard._fsdp_api import ReduceScatter

from lockstep import optim
from lockstep.comm.tree import Node, TreeReduce, block, fold, push
from lockstep.comm.world import World
from lockstep.config import Run
from lockstep.data.batches import MicroBatch
from lockstep.errors import UserError
from lockstep.parallel import Objective
from lockstep.parallel.flat import Flat
from lockstep.parallel.parts import Part, whole
from lockstep.parallel.replicated import mean_of_shards
from lockstep.parallel.split import blocks_of


class FullySharded:
    """FSDP2, with each shard's gradients by themselves until they are added along the tree."""

    def __init__(self, run: Run, model: nn.Module, objective: Objective, world: World) -> None:
        self.run, self.model, self.objective = run, model, objective
        self.shards: Sequence[int] = block(world.rank, world.size, run.shards)
        self.flat = Flat(model, gradients=False)
        self.tree = TreeReduce(
            self.flat.length, run.shards, world.rank, world.size, self.flat.dtype, self.flat.device
        )
        self.optimizer = optim.make_optimizer(run, model)
        names = {id(p): name for name, p in model.named_parameters()}
        strides = {name: p.stride() for name, p in model.named_parameters()}
        order = [names[id(p)] for p in optim.parameters(self.optimizer)]
        self.sums = _shard(model, self.flat.device, run.shards)
        # The optimizer works on the parts. It has kept nothing yet, but for which ones decay.
        sharded = dict(model.named_parameters())
        self.parts = {name: Part(sharded[name], strides[name]) for name in order}
        for group in self.optimizer.param_groups:
            group["params"] = [self.parts[names[id(p)]].values for p in group["params"]]
        self.communication = 0.0

    def step(self, micro_batches: Sequence[MicroBatch], lr: float) -> torch.Tensor:
        mean, sums, seconds = mean_of_shards(
            self.model, self._zeroed, micro_batches, self.flat, self.tree
        )
        self.tree.free(mean)
        started = time.perf_counter()
        for part in self.parts.values():
            part.load()
        if self.run.clip is not None:
            norms = torch.stack([part.norm_of_whole() for part in self.parts.values()])
            nn.utils.clip_grads_with_norm_(
                [part.values for part in self.parts.values()],
                self.run.clip,
                torch.linalg.vector_norm(norms),
            )
        self.communication += seconds + time.perf_counter() - started
        self.communication += sum(parts.take_seconds() for parts in self.sums)
        optim.update(self.optimizer, lr, None)
        for part in self.parts.values():
            part.store()
        return sums

    def _zeroed(
        self, model: nn.Module, micro_batches: Sequence[MicroBatch]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        # A shard's gradients go where they are added: none is to meet the shard before.
        model.zero_grad()
        return self.objective(model, micro_batches)

    def totals(self, sums: torch.Tensor) -> torch.Tensor:
        return sums

    def share_of(self, sums: torch.Tensor) -> torch.Tensor:
        return sums[0]

    def model_state(self) -> dict[str, torch.Tensor]:
        return _kept((name, whole(value)) for name, value in self.model.state_dict().items())

    def optimizer_state(self) -> optim.State:
        return {
            name: _kept(
                (key, part.whole_of(value) if value.ndim else value)
                for key, value in self.optimizer.state[part.values].items()
                if isinstance(value, torch.Tensor)
            )
            for name, part in self.parts.items()
            if part.values in self.optimizer.state
        }

    def own_state(self) -> dict[str, torch.Tensor]:
        return {}

    def load(self, optimizer: optim.State, own: dict[str, torch.Tensor]) -> None:
        for name, part in self.parts.items():
            if name in optimizer:
                self.optimizer.state[part.values] = {
                    key: part.part_of(value) if value.ndim else value.to(self.flat.device)
                    for key, value in optimizer[name].items()
                }

    def alike(self) -> dict[str, torch.Tensor]:
        return dict(self.model.named_buffers())  # of the rest, each rank has a part


def _kept(tensors: Iterable[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return tensors that all ranks make whole together, on the CPU of rank 0.

    No other rank, and no device, has to have more of them whole than one at a time.
    """
    return {name: tensor.cpu() for name, tensor in tensors if not dist.get_rank()}


def _shard(model: nn.Module, device: torch.device, shards: int) -> list["PartSum"]:
    """Shard a model's parameters; return what adds up the gradients of each of its modules."""
    for name, parameter in model.named_parameters():
        if not parameter.ndim:
            raise UserError(
                f"model: fsdp cannot shard {name}, a single number; give it one dimension, of "
                f"length 1, or take another strategy"
            )
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    model.to(memory_format=torch.contiguous_format)  # FSDP2 wants it so
    try:
        blocks = [b for b in blocks_of(model) if any(p.requires_grad for p in b.parameters())]
    except UserError:
        blocks = []  # it is no chain: then all at once
    for module in dict.fromkeys([*blocks, model]):
        fully_shard(module, mesh=mesh)
    sums = []
    for module in model.modules():
        if isinstance(module, FSDPModule):
            sums.append(PartSum(shards, mesh.size()))
            module.set_force_sum_reduction_for_comms(True)
            module.set_gradient_divide_factor(1.0)
            module.set_reduce_scatter_unused_params(True, recurse=False)
            module.set_custom_reduce_scatter(sums[-1])
            if mesh.size() == 1:  # then FSDP2 has nothing to scatter
                module.set_all_reduce_hook(sums[-1].add_own)
    return sums


class PartSum(ReduceScatter):
    """The mean over all shards of this rank's part of some parameters' gradients, by the tree.

    A rank's i-th backward pass is that of the i-th shard of its block; what it leaves in the output
    counts after the last.
    """

    def __init__(self, shards: int, ranks: int) -> None:
        self.shards, self.ranks, self.seconds = shards, ranks, 0.0
        self._begin()

    def _begin(self) -> None:
        self.done = 0
        self.stacks: list[list[Node]] = [[] for _ in range(self.ranks)]

    def allocate(
        self, size: Sequence[Any], *, dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self,
        output_tensor: torch.Tensor,
        input_tensor: torch.Tensor,
        group: dist.ProcessGroup,
        op: Any,
        async_op: bool = False,
    ) -> None:
        started = time.perf_counter()
        received = torch.empty_like(input_tensor)
        dist.all_to_all_single(received, input_tensor, group=group)
        self.seconds += time.perf_counter() - started
        self._add(received, output_tensor)

    def add_own(self, gradients: torch.Tensor) -> None:
        """Do what a call does, where there is one rank."""
        self._add(gradients.clone(), gradients)

    def _add(self, received: torch.Tensor, output: torch.Tensor) -> None:
        each = self.shards // self.ranks
        for rank, (stack, term) in enumerate(
            zip(self.stacks, received.view(self.ranks, -1), strict=True)
        ):
            push(stack, Node(0, rank * each + self.done, term))
        self.done += 1
        if self.done == each:
            together: list[Node] = []
            for stack in self.stacks:
                for node in stack:
                    push(together, node)
            torch.div(fold(together), self.shards, out=output)
            self._begin()

    def take_seconds(self) -> float:
        """Return the seconds spent in communication since the last time."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds
