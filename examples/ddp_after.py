"""The training of `ddp_before.py`, ported: the same bits on any number of ranks.

torchrun --nproc-per-node 2 examples/ddp_after.py
"""

import argparse

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

import lockstep

parser = argparse.ArgumentParser()
parser.add_argument("--output", default="out/ddp", help="where checkpoints and the model go")
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


with lockstep.init(shards=8, seed=1) as session:
    model = session.build(network)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    dataset = TensorDataset(*spirals(args.samples))
    run = session.run(model, optimizer, args.output)
    for step in run.steps(len(dataset), batch=128, epochs=args.epochs):
        for shard in step:
            x, y = dataset[shard.ids]
            loss = F.cross_entropy(model(x), y, reduction="sum")
            shard.backward(loss, items=len(y))
        step.clip(1.0)
        optimizer.step()
    if session.rank == 0:
        print(run.sha256)
