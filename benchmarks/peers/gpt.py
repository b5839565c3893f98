"""A tiny GPT by torchrun and DistributedDataParallel, and the same in a loop by Lockstep.

torchrun --nproc-per-node=2 -m benchmarks.peers.gpt ddp
lockstep launch -n 2 benchmarks/peers/gpt.py lockstep
"""

import json
import sys
import tempfile
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import lockstep
from benchmarks.library import GPT

SEQUENCES, LENGTH, BATCH, EPOCHS = 640, 128, 32, 3


def data() -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs and targets: made-up tokens, and those that follow (int64, N x T)."""
    tokens = torch.randint(256, (SEQUENCES, LENGTH + 1), generator=torch.Generator().manual_seed(0))
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def loss_of(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, how: str) -> torch.Tensor:
    return F.cross_entropy(model(x), y.flatten(), reduction=how)


def ddp() -> list[float]:
    """Return the tokens per second of each epoch."""
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model, dataset = DistributedDataParallel(GPT()), TensorDataset(*data())
    sampler = DistributedSampler(dataset)
    loader = DataLoader(dataset, BATCH // dist.get_world_size(), sampler=sampler)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    rates = []
    for epoch in range(EPOCHS):
        started = time.perf_counter()
        sampler.set_epoch(epoch)
        for x, y in loader:
            optimizer.zero_grad()
            loss_of(model, x, y, "mean").backward()
            optimizer.step()
        rates.append(SEQUENCES * LENGTH / (time.perf_counter() - started))
    if dist.get_rank():
        rates = []
    dist.destroy_process_group()
    return rates


def ours() -> list[float]:
    """Return the tokens per second of each epoch."""
    with tempfile.TemporaryDirectory() as folder, lockstep.init(shards=4) as session:
        (x, y), rates = data(), []
        model = session.build(GPT)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        run = session.run(model, optimizer, folder, checkpoint_every="9 h")
        started = time.perf_counter()
        for step in run.steps(SEQUENCES, BATCH, epochs=EPOCHS):
            for shard in step:
                loss = loss_of(model, x[shard.ids], y[shard.ids], "sum")
                shard.backward(loss, items=len(shard.ids) * LENGTH)
            optimizer.step()
            if step.ends_epoch:
                now = time.perf_counter()
                rates.append(SEQUENCES * LENGTH / (now - started))
                started = now
        return rates if session.rank == 0 else []


if __name__ == "__main__":
    if rates := {"ddp": ddp, "lockstep": ours}[sys.argv[1]]():
        print(json.dumps({"rates": rates}), flush=True)
