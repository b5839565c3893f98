"""Train a model of `tests.mpi.drawn` in a loop of one's own: number, folder for results."""

import sys

import torch
import torch.nn.functional as F  # noqa: N812

import lockstep
from tests.mpi.drawn import draw

with lockstep.init(shards=5, seed=3) as session:
    numbers = torch.Generator().manual_seed(0)
    images = torch.randn(90, 1, 8, 8, generator=numbers)
    labels = torch.randint(10, (90,), generator=numbers)
    model = session.build(draw, int(sys.argv[1]), (8, 8, 1)[::-1], 10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    run = session.run(model, optimizer, sys.argv[2])
    for step in run.steps(len(images), batch=30, epochs=1):
        for shard in step:
            logits = model(images[shard.ids])
            loss = F.cross_entropy(logits, labels[shard.ids], reduction="sum")
            shard.backward(loss, items=len(logits))
        step.clip(1.0)
        optimizer.step()
