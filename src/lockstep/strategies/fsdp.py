"""fsdp: parameters, gradients and the optimizer's state in parts, one on each rank (FSDP2).

After Rajbhandari et al., "ZeRO" (2020) and Zhao et al., "PyTorch FSDP" (2023), by torch's
`fully_shard` of each block and of the model. To have the bits of `single`, each micro-batch's
gradients go to the ranks whose parts they are as they are, and are added there along the tree over
the shards; and what works on a part finds it as it lies in the whole.
"""

import ctypes
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from lockstep import optimizer
from lockstep.errors import UserError, first_line
from lockstep.reduce.accumulator import Accumulator, total_items
from lockstep.reduce.flat import Flat
from lockstep.reduce.tree import GatherReduce, Node, fold, push
from lockstep.strategies import Setup
from lockstep.strategies.parts import Part, whole
from lockstep.strategies.replicated import form
from lockstep.strategies.split import blocks_apart, evaluating
from lockstep.strategies.task import Loss, MicroBatch, sums_of
from lockstep.tensors import digest
from lockstep.torch_private.fsdp import ReduceScatter

# Blocks of memory of so many bytes go back to the system when they are free. By itself glibc keeps
# those of up to 32 MiB: whole layers, which FSDP2 takes and frees all the time, in other sizes.
LARGE = 2**22
# The top of the heap stays up to so many bytes, as by itself: to fault it in anew takes time.
TOP = 2**25
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # mallopt(3)


class FullySharded:
    """FSDP2, with each shard's gradients by themselves until they are added along the tree."""

    def __init__(self, setup: Setup) -> None:
        self.run, self.model, self.task = setup.run, setup.model, setup.task
        run, model, world = setup.run, setup.model, setup.world
        if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):  # glibc's
            mallopt(M_MMAP_THRESHOLD, LARGE)
            mallopt(M_TRIM_THRESHOLD, TOP)
        # Not a block: what the ranks have at one time is to be neighbours in the tree.
        self.shards: Sequence[int] = range(world.rank, run.shards, world.size)
        flat = Flat(model, gradients=False)
        tree = GatherReduce(flat.length, run.shards, world.size, flat.dtype, flat.device)
        self.accumulator = Accumulator(model, flat, tree)
        self.metrics = sums_of(setup.task, run.shards, self.shards)
        self.optimizer = setup.make_optimizer(model)
        names = {id(p): name for name, p in model.named_parameters()}
        strides = {name: p.stride() for name, p in model.named_parameters()}
        order = [names[id(p)] for p in optimizer.parameters(self.optimizer)]
        self.passes = 0  # the forward passes that this step has begun
        self.sums = _shard(model, flat.device, run.shards, setup.task.example())
        # The optimizer works on the parts. It has kept nothing yet, but for which ones decay.
        sharded = dict(model.named_parameters())
        self.parts = {name: Part(sharded[name], strides[name]) for name in order}
        for group in self.optimizer.param_groups:
            group["params"] = [self.parts[names[id(p)]].values for p in group["params"]]
        self.communication = 0.0

    def step(self, micro_batches: Sequence[MicroBatch], lr: float) -> None:
        self.accumulator.begin()
        here = form(self._zeroed, micro_batches, self.accumulator, self.metrics)
        started = time.perf_counter()
        items, total = total_items(here), self.accumulator.sum()
        seconds = time.perf_counter() - started
        self.accumulator.finish(total, items)
        self._check_passes()
        self.passes = 0
        started = time.perf_counter()
        for part in self.parts.values():
            part.load(items)
        if self.run.clip is not None:
            norms = torch.stack([part.norm_of_whole() for part in self.parts.values()])
            nn.utils.clip_grads_with_norm_(
                [part.values for part in self.parts.values()],
                self.run.clip,
                torch.linalg.vector_norm(norms),
            )
        self.communication += seconds + time.perf_counter() - started
        self.communication += sum(parts.take_seconds() for parts in self.sums)
        optimizer.update(self.optimizer, lr, None)
        for part in self.parts.values():
            part.store()

    def _zeroed(self, model: nn.Module, micro_batches: Sequence[MicroBatch]) -> Loss:
        # A shard's gradients go where they are added: none is to meet the shard before.
        model.zero_grad()
        self._check_passes()
        self.passes += 1
        return self.task(model, micro_batches)

    def _check_passes(self) -> None:
        for parts in self.sums:
            parts.check(self.passes)

    def model_state(self) -> dict[str, torch.Tensor]:
        return _kept((name, whole(value)) for name, value in self.model.state_dict().items())

    def optimizer_state(self) -> optimizer.State:
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

    def load(self, state: optimizer.LazyState, own: Mapping[str, torch.Tensor]) -> None:
        device = self.accumulator.flat.device
        for name, kept in state.items():
            part = self.parts[name]
            for key, value in kept.items():
                self.optimizer.state[part.values][key] = (
                    part.part_of(value) if value.ndim else value.to(device, copy=True)
                )

    def alike(self) -> dict[str, torch.Tensor]:
        return dict(self.model.named_buffers())  # of the rest, each rank has a part


def _kept(tensors: Iterable[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return tensors that all ranks make whole together, on the CPU of rank 0.

    No other rank, and no device, has to have more of them whole than one at a time.
    """
    return {name: tensor.cpu() for name, tensor in tensors if not dist.get_rank()}


def _shard(
    model: nn.Module, device: torch.device, shards: int, example: torch.Tensor
) -> list["PartSum"]:
    """Shard a model's parameters; return what adds up the gradients of each of its modules.

    Blocks that are called more than once, or share a parameter, are sharded with the model.

    Raises:
        UserError: on all ranks, before any training: in parts, the model does not compute the same.
    """
    model.to(memory_format=torch.contiguous_format)  # FSDP2 wants it so
    for name, parameter in model.named_parameters():
        if not parameter.ndim:
            raise UserError(
                f"model: fsdp cannot shard {name}, a single number; give it one dimension, of "
                f"length 1, or take another strategy"
            )
        if not parameter.is_contiguous():
            raise UserError(
                f"model: fsdp cannot shard {name}, which lies in memory transposed; call "
                f"contiguous() before it becomes a parameter, or take another strategy"
            )
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    alone = blocks_apart(model, example)
    with evaluating(model):
        expected = digest(model(example.clone()))
    whole, names = type(model).__name__, {module: name for name, module in model.named_modules()}
    apart = {p for block in alone for p in block.parameters()}
    rest = any(p.requires_grad and p not in apart for p in model.parameters())
    for module in (*alone, model):
        fully_shard(module, mesh=mesh)
    sums = []
    for module in (*alone, *([model] if rest else [])):
        assert isinstance(module, FSDPModule)
        sums.append(PartSum(names[module] or whole, shards, mesh.size()))
        module.set_force_sum_reduction_for_comms(True)
        module.set_gradient_divide_factor(1.0)
        module.set_reduce_scatter_unused_params(True, recurse=False)
        module.set_custom_reduce_scatter(sums[-1])
        if mesh.size() == 1:  # then FSDP2 has nothing to scatter
            module.set_all_reduce_hook(sums[-1].add_own)
    try:
        with evaluating(model):
            same = expected == digest(model(example.clone()))
        why = "it computes something else"
    except Exception as error:  # it is the user's code that runs here
        same, why = False, first_line(error)
    if not same:
        raise UserError(
            f"model: fsdp cannot shard {whole}: with its parameters in parts, {why}; "
            f"each block must use its own parameters alone; take another strategy"
        )
    for module in (*alone, model):
        module.reshard()  # type: ignore[operator]
    return sums


class PartSum(ReduceScatter):
    """The sum over all shards of this rank's part of some parameters' gradients, by the tree.

    The ranks' i-th backward passes are those of the shards iP ... iP + P - 1, which are neighbours
    in the tree: a rank keeps log2(S/P) + 1 partial sums of its part at most. The output counts
    after the last pass, and is zero until then.

    Args:
        name: of the module whose parameters they are.
        shards: S.
        ranks: P.
    """

    def __init__(self, name: str, shards: int, ranks: int) -> None:
        self.name, self.shards, self.ranks, self.seconds = name, shards, ranks, 0.0
        self.stack: list[Node] = []
        self.passes = 0

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
        self._add(gradients, gradients)

    def _add(self, received: torch.Tensor, output: torch.Tensor) -> None:
        first = self.passes * self.ranks
        for rank, term in enumerate(received.view(self.ranks, -1)):
            push(self.stack, Node(0, first + rank, term))
        self.passes += 1
        if first + self.ranks < self.shards:
            for node in self.stack:
                if node.index << node.level >= first:  # else all that was received would stay
                    node.value = node.value.clone()
            output.zero_()
        else:
            output.copy_(fold(self.stack)).add_(0.0)  # `single` adds to zeros: -0 becomes 0

    def check(self, passes: int) -> None:
        """Refuse a step whose `passes` micro-batches did not have one backward pass each.

        Raises:
            UserError: they had more, or fewer.
        """
        if self.passes != passes:
            raise UserError(
                f"model: fsdp had {self.passes} backward passes of {self.name} for {passes} "
                f"micro-batches; a block must be called once in each forward pass, whatever the "
                f"images and the random numbers are; take another strategy"
            )

    def take_seconds(self) -> float:
        """End a step; return the seconds that it spent in communication."""
        seconds, self.seconds, self.passes = self.seconds, 0.0, 0
        return seconds
