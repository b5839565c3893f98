"""A generative adversarial network: two networks, two optimizers, two passes over each step.

    python examples/gan.py
    mpirun -n 3 python -m mpi4py examples/gan.py      # the same bits

Each `for shard in step` is a pass of its own: it begins without gradients, draws other random
numbers, and leaves the mean gradients of the loss that it was given.
"""

import argparse
import math

import torch
import torch.nn.functional as F
from torch import nn

import lockstep

parser = argparse.ArgumentParser()
parser.add_argument("--output", default="out/gan", help="where checkpoints and the model go")
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--samples", type=int, default=4096)
args = parser.parse_args()


def network(inputs, outputs):
    return nn.Sequential(
        nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, outputs)
    )


def is_real(logits, real):
    """Return the sum of the losses of saying that samples are real, or that they are not."""
    return F.binary_cross_entropy_with_logits(
        logits, torch.full_like(logits, float(real)), reduction="sum"
    )


with lockstep.init(shards=4, seed=1) as session:
    points = torch.Generator().manual_seed(0)
    corner = torch.randint(8, (args.samples,), generator=points) * (2 * math.pi / 8)
    ring = torch.stack([corner.cos(), corner.sin()], dim=1)  # eight heaps on a circle
    ring += 0.05 * torch.randn(ring.shape, generator=points)

    make, tell = session.build(network, 8, 2), session.build(network, 2, 1)
    makes = torch.optim.Adam(make.parameters(), lr=1e-3, betas=(0.5, 0.999))
    tells = torch.optim.Adam(tell.parameters(), lr=1e-3, betas=(0.5, 0.999))
    run = session.run({"make": make, "tell": tell}, [makes, tells], args.output)
    for step in run.steps(len(ring), batch=128, epochs=args.epochs):
        for shard in step:
            real = ring[shard.ids].to(session.device)
            made = make(torch.randn(len(real), 8, device=session.device)).detach()
            loss = is_real(tell(real), True) + is_real(tell(made), False)
            shard.backward(loss, items=len(real), name="tell")
        tells.step()
        for shard in step:
            made = make(torch.randn(len(shard.ids), 8, device=session.device))
            shard.backward(is_real(tell(made), True), items=len(made), name="make")
        makes.step()

    if session.rank == 0:
        print(run.history[-1])
        print(run.sha256)
