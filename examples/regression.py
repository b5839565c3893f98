"""Regression with a loss of one's own: a curve, and how far off it the points lie.

    python examples/regression.py
    mpirun -n 2 python -m mpi4py examples/regression.py      # the same bits

The network says a mean and a variance for each x, and its loss is the negative log likelihood of y
under that normal distribution (Nix and Weigend, "Estimating the mean and variance of the target
probability distribution", 1994).
"""

import argparse

import torch
from torch import nn

import lockstep

parser = argparse.ArgumentParser()
parser.add_argument("--output", default="out/regression", help="where checkpoints and the model go")
parser.add_argument("--epochs", type=int, default=40)
parser.add_argument("--samples", type=int, default=4096)
args = parser.parse_args()


def network():
    return nn.Sequential(
        nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2)
    )


def negative_log_likelihood(outputs, y):
    """Return the sum over samples, but for a constant; outputs are batch x (mean, log variance)."""
    mean, log_variance = outputs.unbind(1)
    return 0.5 * (log_variance + (y - mean) ** 2 / log_variance.exp()).sum()


with lockstep.init(shards=4, seed=1) as session:
    points = torch.Generator().manual_seed(0)  # the same points on all ranks
    x = torch.rand(args.samples, 1, generator=points) * 6 - 3
    noise = torch.randn(args.samples, generator=points) * (0.05 + 0.1 * x[:, 0].abs())
    y = x[:, 0].sin() + noise

    model = session.build(network)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=args.epochs)
    run = session.run(model, optimizer, args.output, scheduler=schedule)
    for step in run.steps(len(x), batch=256, epochs=args.epochs):
        for shard in step:
            outputs = model(x[shard.ids].to(session.device))
            loss = negative_log_likelihood(outputs, y[shard.ids].to(session.device))
            shard.backward(loss, items=len(shard.ids))
        optimizer.step()
        if step.ends_epoch:
            schedule.step()

    if session.rank == 0:
        print(run.history[-1])
        print(run.sha256)
