"""What the scripts of the peers have in common: arguments, data as torchvision has it, a clock."""

import argparse
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torchvision import transforms

from lockstep.pipeline.data.manifest import read_manifest
from lockstep.pipeline.models import build


def arguments() -> argparse.Namespace:
    """Return what the command line says: data, model, global batch, epochs, workers, precision."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--precision", default="float32")
    return parser.parse_args()


class Images(torch.utils.data.Dataset):
    """One part of a prepared dataset, sample by sample as torchvision's MNIST and CIFAR10 give it:
    an image of PIL's, ToTensor, Normalize."""

    def __init__(self, folder: Path, part: str = "train") -> None:
        manifest = read_manifest(folder)
        self.images = np.load(folder / part / "images.npy").squeeze(
            -1 if manifest.shape[0] == 1 else ()
        )
        self.labels = np.load(folder / part / "labels.npy")
        self.transform = transforms.Compose(
            [transforms.ToTensor(), transforms.Normalize(manifest.mean, manifest.std)]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def network(args: argparse.Namespace) -> nn.Module:
    """Return the model, of the same beginning for all."""
    manifest = read_manifest(args.data)
    torch.manual_seed(0)
    return build(args.model, manifest.shape, manifest.outputs, kind=manifest.kind)


def optimizer(args: argparse.Namespace, model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9, nesterov=True)


def run(
    args: argparse.Namespace,
    epoch: Callable[[int], None],
    model: nn.Module,
    says: bool,
) -> None:
    """Do all epochs, and have one rank say how fast each was, and how good the model is then."""
    rates, samples = [], len(np.load(args.data / "train/labels.npy", mmap_mode="r"))
    for number in range(args.epochs):
        started = time.perf_counter()
        epoch(number)
        rates.append(samples / (time.perf_counter() - started))
    if says:
        print(json.dumps({"rates": rates, "accuracy": accuracy(args, model)}), flush=True)


@torch.no_grad()
def accuracy(args: argparse.Namespace, model: nn.Module) -> float:
    """Return the share of the test set that a model has right."""
    model.eval()
    loader = torch.utils.data.DataLoader(Images(args.data, "test"), 250)
    right: Iterable[int] = (int((model(x).argmax(1) == y).sum()) for x, y in loader)
    return sum(right) / len(loader.dataset)  # type: ignore[arg-type]
