"""Train in a loop of one's own that has a fault: its name, folder for results.

No fault shows where the first shard is done twice.
"""

import sys

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

import lockstep

fault, folder = sys.argv[1:]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)
        self.calls = 0

    def forward(self, x):
        x = self.norm(self.first(x)).relu()
        self.calls += 1
        return self.last(x * 2 if fault == "attribute" and self.calls > 4 else x)


with lockstep.init(shards=1 if fault == "one shard" else 4, seed=1) as session:
    numbers = torch.Generator().manual_seed(0)
    x, y = torch.randn(48, 6, generator=numbers), torch.randint(2, (48,), generator=numbers)
    last = session.rank == session.size - 1 and session.size > 1
    model = session.build(Net)
    if fault == "weights at the start" and last:
        nn.init.zeros_(model.last.bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    run = session.run(model, optimizer, folder)
    batch = 8 * session.size if fault == "batch" else 16
    epochs = session.size if fault == "epochs" else 2
    if fault == "samples by rank" and last:
        x = x[:40]
    for step in run.steps(len(x), batch=batch, epochs=epochs):
        if fault == "eval" and last and step.number == 1:
            model.eval()
        for shard in step:
            inputs = x[shard.ids] + (0.1 if fault == "data by rank" and last else 0)
            loss = F.cross_entropy(model(inputs), y[shard.ids], reduction="sum")
            if fault == "a mean over the ranks":
                loss = loss / session.size
            if fault == "torch's random numbers" and last:
                torch.rand(1)
            shard.backward(loss, items=len(inputs))
            if fault == "gradients in the loop" and last:
                model.last.bias.grad.add_(1)
        if fault == "clipping" and last:
            step.clip(0.01)
        if fault == "rate":
            optimizer.param_groups[0]["lr"] = 0.1 * session.size
        optimizer.step()
        if fault == "weights" and last and step.number == 1:
            with torch.no_grad():
                model.first.weight.mul_(1.001)
        if fault == "buffers" and last:
            model.norm.running_mean.zero_()
