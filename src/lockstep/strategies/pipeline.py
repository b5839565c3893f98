"""pipeline: the model cut into stages over the ranks; the micro-batches are the shards.

GPipe (Huang et al., 2019) and 1F1B (Narayanan et al., "Memory-efficient pipeline-parallel DNN
training", 2021), by torch.distributed.pipelining. Each shard's gradients are kept apart and added
along the tree over the shards, every shard starts from the step's first buffers, and the state of
the random numbers goes from stage to stage with the activations: the bits are those of `single`,
wherever the model is cut. The same class serves `hybrid`, in which several pipelines share the
shards.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

from lockstep import optimizer
from lockstep.reduce.accumulator import total_items
from lockstep.reduce.buffers import Buffers
from lockstep.reduce.flat import Flat
from lockstep.reduce.tree import Node, TreeReduce, block
from lockstep.strategies import Setup
from lockstep.strategies.split import cut, tensors_of
from lockstep.strategies.task import Loss, MicroBatch, Task, sums_of
from lockstep.tensors import as_bytes


def pipeline(setup: Setup) -> "Pipeline":
    """Return this rank's stage of the one pipeline that all ranks are."""
    everyone = dist.group.WORLD
    assert everyone is not None  # `train` has started it
    return Pipeline(setup, everyone, None)


class Pipeline:
    """One stage of a pipeline, and its replicas in the other pipelines.

    Args:
        stages: the ranks that are this pipeline's stages, in their order.
        replicas: the ranks that have this stage in all the pipelines; None: there is one pipeline.
    """

    def __init__(
        self, setup: Setup, stages: dist.ProcessGroup, replicas: dist.ProcessGroup | None
    ) -> None:
        self.run, self.model, self.task = setup.run, setup.model, setup.task
        run, model, task, make_optimizer = setup.run, setup.model, setup.task, setup.make_optimizer
        self.stages, self.replicas = stages, replicas
        self.chain = cut(model, task.example(), stages.size())[stages.rank()]
        self.optimizer = make_optimizer(self.chain)
        together = optimizer.parameters(make_optimizer(model))
        self.order = {id(p): place for place, p in enumerate(together)}
        self.replica, count = (replicas.rank(), replicas.size()) if replicas else (0, 1)
        mine = block(self.replica, count, run.shards)
        flat = Flat(self.chain)
        tree = TreeReduce(
            flat.length, run.shards, self.replica, count, flat.dtype, flat.device, replicas
        )
        self.stage = ShardStage(self.chain, task, flat, tree, mine, stages)
        kind = ScheduleGPipe if run.pipeline_schedule == "gpipe" else Schedule1F1B
        self.schedule = kind(self.stage, len(mine), loss_fn=self._loss, scale_grads=False)
        # The stages in between take activations, and have no use for data.
        self.shards: Sequence[int] = mine if self.stage.is_first or self.stage.is_last else ()
        self.metrics = sums_of(task, run.shards, mine if self.stage.is_last else ())
        self.communication = 0.0

    def step(self, micro_batches: Sequence[MicroBatch], lr: float) -> None:
        started = time.perf_counter()
        stage, task = self.stage, self.task
        feed: dict[str, Any] = {}
        if stage.is_first:
            feed["arg_mbs"] = [(task.inputs([m]), draws(stage.device)) for m in micro_batches]
        if stage.is_last:
            feed["target_mbs"] = [task.targets([m]) for m in micro_batches]
        stage.start(micro_batches)
        self.schedule.step(**feed, return_outputs=False)
        for shard, loss in stage.losses.items():
            self.metrics.add(shard, loss.sums())
        stage.finish(total_items(sum(loss.items for loss in stage.losses.values())))
        if self.run.clip is not None:
            self._clip(self.run.clip)
        # Waiting for a neighbour is communication too: transfers, and the pipeline's bubble.
        self.communication += time.perf_counter() - started - stage.computing
        optimizer.update(self.optimizer, lr, None)

    def _loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss = self.task.loss(outputs, targets)
        self.stage.outcomes[loss.value] = loss, outputs.detach()
        return loss.value

    def _clip(self, longest: float) -> None:
        """Clip by the norm of the whole model's gradient, with the bits of clip_grad_norm_.

        That is the norm of the parameters' norms, in the order in which one optimizer has them.
        """
        mine = optimizer.parameters(self.optimizer)
        norms = torch.zeros(len(self.order), dtype=mine[0].dtype, device=mine[0].device)
        gradients = [p.grad for p in mine if p.grad is not None]  # there is one of each
        norms[[self.order[id(p)] for p in mine]] = torch.stack(torch._foreach_norm(gradients))
        dist.all_reduce(norms, group=self.stages)  # to each place all ranks but one add nothing
        nn.utils.clip_grads_with_norm_(mine, longest, torch.linalg.vector_norm(norms))

    def model_state(self) -> dict[str, torch.Tensor]:
        found = self._gather(self._mine())
        return {name: found[name] for name in self.model.state_dict() if name in found}

    def optimizer_state(self) -> optimizer.State:
        mine = optimizer.state_of(self.optimizer, self.model)
        found = self._gather({(n, key): v for n, kept in mine.items() for key, v in kept.items()})
        return {
            name: {key: value for (whose, key), value in found.items() if whose == name}
            for name in dict.fromkeys(name for name, _ in found)
        }

    def own_state(self) -> dict[str, torch.Tensor]:
        return {}

    def load(self, state: optimizer.LazyState, own: Mapping[str, torch.Tensor]) -> None:
        optimizer.load_state(self.optimizer, self.model, state)

    def alike(self) -> dict[str, torch.Tensor]:
        kept = optimizer.state_of(self.optimizer, self.model) if self.replicas else {}
        return self._mine() | optimizer.named(kept)

    def _mine(self) -> dict[str, torch.Tensor]:
        """Return what this stage has of the model's state_dict."""
        mine = {id(t) for t in tensors_of(self.chain)}
        whole = self.model.state_dict(keep_vars=True)
        return {name: t.detach() for name, t in whole.items() if id(t) in mine}

    def _gather(self, mine: dict[Any, torch.Tensor]) -> dict[Any, torch.Tensor]:
        """Return on the CPU of rank 0 what the first pipeline's stages have, each by its name.

        It takes one tensor at a time, and makes no other rank hold any that is not its own.
        """
        rank = dist.get_rank()
        everyones: list[Any] = [{}] * dist.get_world_size()
        kinds = {name: (t.shape, t.dtype, t.device.type) for name, t in mine.items()}
        dist.gather_object({} if self.replica else kinds, None if rank else everyones)
        if rank:
            for tensor in mine.values() if self.replica == 0 else ():
                dist.send(as_bytes(tensor), 0)
            return {}
        found = {name: tensor.cpu() for name, tensor in mine.items()}
        for other, theirs in enumerate(everyones[1:], start=1):
            for name, (shape, dtype, device) in theirs.items():
                tensor = torch.empty(shape, dtype=dtype, device=device)
                dist.recv(as_bytes(tensor), other)
                found[name] = tensor.cpu()
        return found


class ShardStage(PipelineStage):
    """A stage in which each micro-batch has buffers and gradients of its own."""

    def __init__(
        self,
        chain: nn.Module,
        task: Task,
        flat: Flat,
        tree: TreeReduce,
        shards: Sequence[int],
        group: dist.ProcessGroup,
    ) -> None:
        super().__init__(chain, group.rank(), group.size(), flat.device, group=group)
        self.task, self.flat, self.tree, self.shards = task, flat, tree, shards
        # Activations and gradients go as plain memory: refuse any that lie otherwise than agreed.
        self._runtime_validate = True

    def start(self, micro_batches: Sequence[MicroBatch]) -> None:
        """Begin a step."""
        self.micro_batches = micro_batches
        self.stack: list[Node] = []
        self.buffers: list[list[torch.Tensor]] = []  # as each forward pass left them
        # Each loss with the outputs that it is of: those of the rehearsal as well.
        self.outcomes: dict[torch.Tensor, tuple[Loss, torch.Tensor]] = {}
        self.losses: dict[int, Loss] = {}  # of the shards, on the last stage
        self.gradient: torch.Tensor  # of the last backward pass, for the stage before
        self.computing = 0.0

    def forward_maybe_with_nosync(self, value: torch.Tensor, drawn: torch.Tensor) -> Any:
        started = time.perf_counter()
        go_on_from(drawn)
        if not self.is_first:
            value = Boundary.apply(value, self)
        value, buffers = with_own_buffers(self.submod, partial(self.task.forward, inputs=value))
        self.buffers.append(buffers)
        self.computing += time.perf_counter() - started
        return value if self.is_last else (value, draws(value.device))

    def backward_maybe_with_nosync(self, *args: Any, **options: Any) -> Any:
        gradients, rest = super().backward_maybe_with_nosync(*args, **options)
        return (gradients if self.is_first else (self.gradient, *gradients[1:])), rest

    def backward_one_chunk(  # type: ignore[override]
        self, bwd_chunk_id: int, loss: Any = None, **options: Any
    ) -> None:
        started = time.perf_counter()
        flat, shard = self.flat, self.shards[bwd_chunk_id]
        term = self.tree.take().zero_()
        flat.attach(term)
        super().backward_one_chunk(bwd_chunk_id, loss, **options)
        flat.put_changes(term, flat.read(), flat.read(self.buffers[bwd_chunk_id]))
        if loss is not None:
            self.losses[shard], outputs = self.outcomes[loss]
            self.task.check(self.losses[shard], outputs, [self.micro_batches[bwd_chunk_id]])
        self.tree.add(self.stack, shard, term)
        self.computing += time.perf_counter() - started

    def finish(self, items: float) -> None:
        """Leave the mean gradients and buffers."""
        flat, tree = self.flat, self.tree
        total = tree.all_reduce(self.stack)
        flat.divide(total, items, tree.shards)
        flat.take_changes(total, flat.read())
        flat.attach(total)
        tree.free(total)  # its values stay until the next step takes a buffer

    def get_fwd_send_ops(self, fwd_chunk_id: int) -> list[dist.P2POp]:
        return as_memory(super().get_fwd_send_ops(fwd_chunk_id))

    def get_fwd_recv_ops(self, fwd_chunk_id: int) -> list[dist.P2POp]:
        return as_memory(super().get_fwd_recv_ops(fwd_chunk_id))

    def get_bwd_send_ops(self, bwd_chunk_id: int) -> list[dist.P2POp]:
        return as_memory(super().get_bwd_send_ops(bwd_chunk_id))

    def get_bwd_recv_ops(self, bwd_chunk_id: int) -> list[dist.P2POp]:
        return as_memory(super().get_bwd_recv_ops(bwd_chunk_id))

    # The first step begins with a rehearsal, to find out how activations and gradients lie in
    # memory: of values that mean nothing, which must lie as the real ones will.

    def _compute_outputs(self, *args: torch.Tensor, module: nn.Module, **_: Any) -> Any:
        value, drawn = args
        output = with_own_buffers(module, partial(self.task.forward, inputs=value))[0]
        return output if self.is_last else (output, drawn)

    def _ones_from_metadata(self, meta: Any) -> torch.Tensor:
        return meta.to_tensor(self.device).detach().fill_(1)


class Boundary(torch.autograd.Function):
    """Where a stage begins: hands over its input's gradient just as the first block returns it.

    In the input's own `grad` it would lie as the input does, which it need not on one process.
    """

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, stage: ShardStage) -> torch.Tensor:
        ctx.stage = stage
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[None, None]:
        (ctx.stage.gradient,) = gradients
        return None, None


def with_own_buffers(
    module: nn.Module, call: Callable[[nn.Module], torch.Tensor]
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Call with a module that has copies of its buffers; return the result, and these afterwards.

    (torch's functional_call would not restore a module that is there twice.)
    """
    buffers = Buffers(module)
    buffers.put(buffers.copies())
    try:
        value = call(module)
        after = buffers.now()
    finally:
        buffers.put(buffers.first)
    return value, after


def as_memory(ops: list[dist.P2POp]) -> list[dist.P2POp]:
    """Let transfers take the memory that a tensor spans, in whatever order it has its elements.

    Kernels are chosen by how tensors lie: the next stage gets them as they are. (Gloo would refuse
    those that are not contiguous.)
    """
    for op in ops:
        steps = zip(op.tensor.shape, op.tensor.stride(), strict=True)
        span = 1 + sum((size - 1) * stride for size, stride in steps)
        op.tensor = op.tensor.as_strided((span,), (1,))
    return ops


def draws(device: torch.device) -> torch.Tensor:
    """Return the state of the random numbers (uint8), where activations are."""
    state = torch.default_generator.get_state()
    if device.type == "cuda":
        state = torch.cat([state, torch.cuda.get_rng_state(device)])
    return state.to(device)


def go_on_from(drawn: torch.Tensor) -> None:
    """Set the random numbers to a state that `draws` returned."""
    size = len(torch.default_generator.get_state())
    torch.default_generator.set_state(drawn[:size].cpu())
    if drawn.is_cuda:
        torch.cuda.set_rng_state(drawn[size:].cpu(), drawn.device)
