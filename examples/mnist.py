"""Digits by a small convolutional network: the whole of a training, in one file.

python examples/mnist.py --data data/mnist
mpirun -n 3 python -m mpi4py examples/mnist.py --data data/mnist      # the same bits
"""

import argparse
import gzip
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import lockstep

parser = argparse.ArgumentParser()
parser.add_argument("--data", default="data/mnist", help="the folder of the four files of MNIST")
parser.add_argument("--output", default="out/mnist", help="where checkpoints and the model go")
parser.add_argument("--epochs", type=int, default=2)
parser.add_argument("--samples", type=int, help="train on the first so many, for a try")
args = parser.parse_args()


def read(name):
    """Return an IDX file, as http://yann.lecun.com/exdb/mnist describes it, packed or not."""
    packed, plain = Path(args.data, f"{name}.gz"), Path(args.data, name)
    if not packed.exists() and not plain.exists():
        sys.exit(
            f"{packed}: not there; get the four files of MNIST into {args.data}, such as from "
            f"https://ossci-datasets.s3.amazonaws.com/mnist/{name}.gz, or give their --data"
        )
    raw = gzip.decompress(packed.read_bytes()) if packed.exists() else plain.read_bytes()
    sizes = [int.from_bytes(raw[4 + 4 * axis : 8 + 4 * axis]) for axis in range(raw[3])]
    return torch.frombuffer(bytearray(raw[4 + 4 * raw[3] :]), dtype=torch.uint8).view(sizes)


class CNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.conv2, self.norm2 = nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32)
        self.drop, self.out = nn.Dropout(0.2), nn.Linear(32 * 7 * 7, 10)

    def forward(self, x):  # batch x 1 x 28 x 28
        x = F.max_pool2d(self.norm1(self.conv1(x)).relu(), 2)
        x = F.max_pool2d(self.norm2(self.conv2(x)).relu(), 2)
        return self.out(self.drop(x.flatten(1)))  # batch x 10


def pixels(images, device):
    return images.unsqueeze(1).to(device).float() / 255 - 0.13  # 0.13 is their mean


images, labels = read("train-images-idx3-ubyte"), read("train-labels-idx1-ubyte")

with lockstep.init(shards=8, seed=1) as session:
    model = session.build(CNN)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    run = session.run(model, optimizer, args.output)
    for step in run.steps(args.samples or len(labels), batch=128, epochs=args.epochs):
        for shard in step:  # 16 samples of each shard
            x, y = pixels(images[shard.ids], session.device), labels[shard.ids].to(session.device)
            logits = model(x)
            loss = F.cross_entropy(logits, y.long(), reduction="sum")
            shard.backward(loss, items=len(y), accuracy=(logits.argmax(1) == y).sum())
        optimizer.step()
        if session.rank == 0 and step.number % 50 == 0:
            print(f"step {step.number}: {step.metrics}")

    if session.rank == 0:  # what the others do not need to know, one rank does alone
        x, y = read("t10k-images-idx3-ubyte"), read("t10k-labels-idx1-ubyte")
        model.eval()
        with torch.no_grad():
            found = torch.cat(
                [model(pixels(some, session.device)).argmax(1) for some in x.split(500)]
            )
        print(f"{(found.cpu() == y).float().mean():.2%} of the test images; {run.history[-1]}")
        print(run.sha256)
