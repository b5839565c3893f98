"""A program for any number of ranks: what torch builds on process groups, over MPI as over Gloo.

Each part is run over a group of both and must give the same numbers; or those of a single process.
"""

import copy
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, post_localSGD_hook
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook as power
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import PostLocalSGDOptimizer
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile

from lockstep.distributed.rendezvous import from_mpi


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 12))


def batch(rank: int) -> torch.Tensor:
    return torch.randn(6, 12, generator=torch.Generator().manual_seed(rank))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, own: torch.Tensor) -> None:
    for _ in range(4):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(own), own).backward()
        optimizer.step()


def alone(size: int) -> nn.Module:
    """Return the network trained by one process on the batches of all ranks."""
    model = network()
    train(
        model, torch.optim.SGD(model.parameters(), 0.1), torch.cat([batch(r) for r in range(size)])
    )
    return model


def close(ours: nn.Module, theirs: nn.Module) -> bool:
    pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in pairs)


def ddp(group: dist.ProcessGroup, hook: str) -> nn.Module:
    """Train by DistributedDataParallel with a communication hook."""
    # The hook of PowerSGD communicates when it is called back: with buckets, in no certain order.
    buckets = {} if hook == "power" else {"bucket_cap_mb": 0.001}
    model = DistributedDataParallel(network(), process_group=group, **buckets)
    if hook == "power":
        state = power.PowerSGDState(group, matrix_approximation_rank=2, start_powerSGD_iter=2)
        model.register_comm_hook(state, power.powerSGD_hook)
    elif hook:
        model.register_comm_hook(group, getattr(default_hooks, f"{hook}_hook"))
    train(model, torch.optim.SGD(model.parameters(), 0.1), batch(dist.get_rank()))
    return model.module


def post_local_sgd(group: dist.ProcessGroup) -> nn.Module:
    model = DistributedDataParallel(network(), process_group=group)
    state = post_localSGD_hook.PostLocalSGDState(group, subgroup=group, start_localSGD_iter=1)
    model.register_comm_hook(state, post_localSGD_hook.post_localSGD_hook)
    averager = PeriodicModelAverager(period=2, warmup_steps=1, process_group=group)
    plain = torch.optim.SGD(model.parameters(), 0.1)
    train(model, PostLocalSGDOptimizer(plain, averager), batch(dist.get_rank()))
    return model.module


def check_ddp() -> None:
    for hook in ("", "allreduce", "fp16_compress", "bf16_compress", "power"):
        ours, theirs = ddp(dist.group.WORLD, hook), ddp(gloo, hook)
        pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
        assert all(torch.allclose(a, b, atol=1e-2 if "16" in hook else 1e-5) for a, b in pairs), (
            hook
        )
    assert close(ddp(dist.group.WORLD, ""), alone(dist.get_world_size()))
    assert close(post_local_sgd(dist.group.WORLD), post_local_sgd(gloo))


def check_fsdp_and_checkpoint(folder: Path) -> None:
    size = dist.get_world_size()
    mesh = init_device_mesh("cpu", (size,))
    model = network()
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=mesh)
    train(model, torch.optim.SGD(model.parameters(), 0.1), batch(dist.get_rank()))
    whole = network()
    for parameter, shard in zip(whole.parameters(), model.parameters(), strict=True):
        parameter.data = shard.full_tensor()
    assert close(whole, alone(size))
    dcp.save({"model": model.state_dict()}, checkpoint_id=folder / str(size))
    saved = copy.deepcopy(model.state_dict())
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    state = {"model": model.state_dict()}
    dcp.load(state, checkpoint_id=folder / str(size))
    for name, tensor in state["model"].items():
        assert torch.equal(tensor.to_local(), saved[name].to_local()), name


def check_tensor_parallel() -> None:
    size = dist.get_world_size()
    mesh = init_device_mesh("cpu", (size,), mesh_dim_names=("tensor",))
    plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    model = parallelize_module(network(), mesh["tensor"], plan)
    right = network()
    assert torch.allclose(model(batch(0)), right(batch(0)), atol=1e-6)
    model(batch(0)).sum().backward()
    right(batch(0)).sum().backward()
    for parameter, other in zip(model.parameters(), right.parameters(), strict=True):
        assert torch.allclose(parameter.grad.full_tensor(), other.grad, atol=1e-5)


def check_mesh() -> None:
    size = dist.get_world_size()
    if size % 2 == 0:
        mesh = init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("rows", "columns"))
        for name in ("rows", "columns"):
            tensor = torch.ones(3)
            dist.all_reduce(tensor, group=mesh.get_group(name))
            assert tensor.eq(mesh[name].size()).all()


def check_pipeline() -> None:
    rank, size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(1)
    layers = [nn.Sequential(nn.Linear(12, 12), nn.Tanh()) for _ in range(size)]
    whole = nn.Sequential(*copy.deepcopy(layers))
    stage = PipelineStage(layers[rank], rank, size, torch.device("cpu"))
    schedule = ScheduleGPipe(stage, 3, loss_fn=nn.functional.mse_loss)
    losses: list[torch.Tensor] = []
    last = {"target": batch(1), "losses": losses} if rank == size - 1 else {}
    schedule.step(*([batch(0)] if rank == 0 else []), **last)
    nn.functional.mse_loss(whole(batch(0)), batch(1)).backward()
    for parameter, other in zip(layers[rank].parameters(), whole[rank].parameters(), strict=True):
        assert torch.allclose(parameter.grad, other.grad, atol=1e-6)


def check_profiler() -> None:
    tensor = torch.ones(1000)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        dist.all_reduce(tensor)
        dist.broadcast(tensor, 0, async_op=True).wait()
    shapes = {event.key: event.count for event in profiler.key_averages()}
    assert shapes["c10d::allreduce_"] == 1
    assert shapes["c10d::broadcast_"] == 1


if __name__ == "__main__":
    store, rank, size = from_mpi()
    dist.init_process_group("cpu:mpi4py", store=store, rank=rank, world_size=size)
    gloo = dist.new_group(backend="gloo")
    check_ddp()
    check_fsdp_and_checkpoint(Path(sys.argv[1]))
    check_tensor_parallel()
    check_mesh()
    check_pipeline()
    check_profiler()
    dist.barrier()
    if rank == 0:
        print("all of torch's libraries agree")
    dist.destroy_process_group()
