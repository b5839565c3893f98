"""A small GPT: a decoder-only transformer, as a chain of blocks.

After Radford et al., "Language models are unsupervised multitask learners" (2019), with GPT-2's
initial weights; embedding and head share none, so that the chain can be cut anywhere. Attention is
written out: of torch's fused kernels, some add up in an order of their own.
"""

import math

import torch
from torch import nn

WIDTH, HEADS, LAYERS = 64, 4, 2


class GPT(nn.Module):
    """From tokens (int64, b x T) to a score for each next one (float32, b x T x vocabulary).

    Args:
        length: the largest T.
        vocabulary: how many tokens there are.
    """

    def __init__(self, length: int, vocabulary: int) -> None:
        super().__init__()
        self.embedding = Embedding(length, vocabulary)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, vocabulary, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                # What is added to the stream in each layer is smaller, the more layers there are.
                into = name.endswith(("attention.out.weight", "after.weight"))
                nn.init.normal_(parameter, std=0.02 / (math.sqrt(2 * LAYERS) if into else 1))

    def blocks(self) -> list[nn.Module]:
        """Return the modules that are called one after the other."""
        return [self.embedding, *self.layers, self.norm, self.head]

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        value = tokens
        for block in self.blocks():
            value = block(value)
        return value


class Embedding(nn.Module):
    """The sum of what a token and its place stand for (b x T x width)."""

    def __init__(self, length: int, vocabulary: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, WIDTH)
        self.places = nn.Parameter(torch.empty(length, WIDTH))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.tokens(tokens) + self.places[: tokens.shape[1]]


class Layer(nn.Module):
    """Attention, and two linear layers, each beside the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = Attention()
        self.before, self.after = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        stream = stream + self.attention(self.first(stream))
        return stream + self.after(nn.functional.gelu(self.before(self.second(stream))))


class Attention(nn.Module):
    """Each place looks at those before it, and itself, with several heads."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        size, length, _ = stream.shape
        split = self.into(stream).view(size, length, 3, HEADS, WIDTH // HEADS)
        queries, keys, values = split.permute(2, 0, 3, 1, 4)
        scores = queries @ keys.transpose(-2, -1) / math.sqrt(WIDTH // HEADS)
        later = torch.ones(length, length, dtype=torch.bool, device=stream.device).triu(1)
        weights = scores.masked_fill(later, -math.inf).softmax(dim=-1)
        return self.out((weights @ values).transpose(1, 2).reshape(size, length, WIDTH))
