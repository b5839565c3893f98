"""A tiny GPT that learns Python from what Python brings: the sources of its standard library.

    python examples/gpt.py
    torchrun --nproc-per-node 2 examples/gpt.py        # the same bits

Samples are paragraphs of unequal length. The loss is a sum over real bytes, and the step divides
by all of them at once: a short paragraph counts no more in one shard than in another.
"""

import argparse
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import lockstep

parser = argparse.ArgumentParser()
parser.add_argument("--output", default="out/gpt", help="where checkpoints and the model go")
parser.add_argument("--epochs", type=int, default=1)
parser.add_argument("--samples", type=int, help="train on the first so many, for a try")
args = parser.parse_args()

LONGEST = 128  # bytes of a paragraph that are read
NOTHING = -100  # the target where there is none; cross_entropy leaves it out


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.qkv = nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.out, self.drop = nn.Linear(width, width), nn.Dropout(0.1)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(0.1)
        )

    def forward(self, x):  # batch x length x width
        b, n, w = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.drop(self.out(seen.transpose(1, 2).reshape(b, n, w)))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    def __init__(self, layers=2, width=64, heads=4):
        super().__init__()
        self.byte, self.place = nn.Embedding(256, width), nn.Embedding(LONGEST, width)
        self.blocks = nn.Sequential(*[Block(width, heads) for _ in range(layers)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256, bias=False)
        nn.init.normal_(self.byte.weight, std=0.02)
        self.head.weight = self.byte.weight  # tied, as in GPT-2

    def forward(self, x):  # batch x length
        h = self.byte(x) + self.place(torch.arange(x.shape[1], device=x.device))
        return self.head(self.norm(self.blocks(h)))  # batch x length x 256


def paragraphs():
    """Return the paragraphs of the standard library, in an order that all ranks have."""
    files = sorted(Path(os.__file__).parent.glob("*.py"))
    texts = [part for file in files for part in file.read_bytes().split(b"\n\n")]
    return [text[: LONGEST + 1] for text in texts if len(text) > 8]


def pad(texts):
    """Return inputs and targets (int64, batch x LONGEST) of texts: at each byte, the next one."""
    x = torch.zeros(len(texts), LONGEST, dtype=torch.int64)
    y = torch.full_like(x, NOTHING)
    for row, text in enumerate(texts):
        data = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        x[row, : len(data) - 1], y[row, : len(data) - 1] = data[:-1], data[1:]
    return x, y


corpus = paragraphs()[: args.samples]

with lockstep.init(shards=4, seed=1) as session:
    model = session.build(GPT)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    run = session.run(model, optimizer, args.output)
    for step in run.steps(len(corpus), batch=32, epochs=args.epochs):
        for shard in step:
            x, y = (part.to(session.device) for part in pad([corpus[i] for i in shard.ids]))
            loss = F.cross_entropy(
                model(x).flatten(0, 1), y.flatten(), ignore_index=NOTHING, reduction="sum"
            )
            shard.backward(loss, items=int((y != NOTHING).sum()))
        step.clip(1.0)
        optimizer.step()
        if session.rank == 0 and step.number % 20 == 0:
            print(f"step {step.number}: loss {step.metrics['loss']:.3f}")

    if session.rank == 0:
        print(run.sha256)
