"""A training as torchrun and DistributedDataParallel have it; `ddp_after.py` is its port.

torchrun --nproc-per-node 2 examples/ddp_before.py
"""

import argparse
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

parser = argparse.ArgumentParser()
parser.add_argument("--output", default="out/ddp", help="where the model goes")
parser.add_argument("--epochs", type=int, default=5)
parser.add_argument("--samples", type=int, default=4096)
args = parser.parse_args()


def network():
    return nn.Sequential(
        nn.Linear(2, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 2)
    )


def spirals(count):
    """Return points (float32, count x 2) on two spirals, and which one each is on."""
    draw = torch.Generator().manual_seed(0)
    label = torch.randint(2, (count,), generator=draw)
    turn = 9 * torch.rand(count, generator=draw).sqrt()
    points = torch.stack([turn.cos(), turn.sin()], 1) * (turn * (2 * label - 1)).unsqueeze(1)
    return points + 0.2 * torch.randn(points.shape, generator=draw), label


dist.init_process_group("gloo")
torch.manual_seed(1)
model = DistributedDataParallel(network())
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
dataset = TensorDataset(*spirals(args.samples))
sampler = DistributedSampler(dataset, seed=1)
loader = DataLoader(dataset, batch_size=128 // dist.get_world_size(), sampler=sampler)
for epoch in range(args.epochs):
    sampler.set_epoch(epoch)
    for x, y in loader:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
if dist.get_rank() == 0:
    Path(args.output).mkdir(parents=True, exist_ok=True)
    torch.save(model.module.state_dict(), Path(args.output, "model.pt"))
dist.destroy_process_group()
