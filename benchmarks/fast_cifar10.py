"""CIFAR-10 by config/fast-cifar10.yaml, beside the same recipe in plain torch: how good, how fast?

    python -m benchmarks.fast_cifar10 [--data data/cifar10] [--seeds 0 1 2] [--epochs N]

Lockstep trains on two ranks of one thread, plain torch in one process of two threads. They take
turns; the clock runs from a process's start to its end. Prints for each turn seconds and accuracy,
and the accuracy of the mean of what the model says of an image and of its mirror image. Fewer
epochs are another training, which tells how fast each is.
"""

import argparse
import shlex
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from benchmarks.head_to_head import ENVIRONMENT
from benchmarks.peers.recipe import images
from examples.fast_cifar10 import net
from lockstep import tensors
from lockstep.pipeline import experiment, launch
from lockstep.pipeline.stages.partition import partition
from tests.conftest import REPOSITORY

CONFIGURATION = REPOSITORY / "config/fast-cifar10.yaml"


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data/cifar10"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int)
    args = parser.parse_args()
    recipe = yaml.safe_load(CONFIGURATION.read_text(encoding="utf-8"))
    recipe["defaults"] |= {"epochs": args.epochs or recipe["defaults"]["epochs"]}
    print("| seed | by | s in all | right | with the mirror image |\n|---:|---|---:|---:|---:|")
    for seed in args.seeds:
        recipe["defaults"] |= {"seed": seed}
        for by, train in (("Lockstep", ours), ("plain torch", plain)):
            with tempfile.TemporaryDirectory() as name:
                weights, seconds = train(args.data.resolve(), recipe, Path(name))
                alone, mirrored = accuracies(weights, args.data)
            print(f"| {seed} | {by} | {seconds:.0f} | {alone:.2%} | {mirrored:.2%} |", flush=True)


def ours(data: Path, recipe: dict[str, Any], folder: Path) -> tuple[Path, float]:
    """Train by Lockstep, and return the weights and the seconds that it took."""
    run = experiment.load(recipe, REPOSITORY)[1]["fast"]
    partition(data, run.scheme, run.shards, run.seed, run.alpha, folder / "shards")
    words = ["lockstep", "launch", "-n", str(run.ranks), "train", f"--data={data}"]
    words += [f"--partition={folder}/shards/shards.csv", f"--output={folder}/run"]
    seconds = clocked([*words, *shlex.split(launch.train_flags(run))], threads=1)
    return folder / "run/model.safetensors", seconds


def plain(data: Path, recipe: dict[str, Any], folder: Path) -> tuple[Path, float]:
    """Train in plain torch, and return the weights and the seconds that it took."""
    output, keys = folder / "model.safetensors", folder / "recipe.yaml"
    keys.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return output, clocked(["python", "-m", "benchmarks.peers.recipe", keys, data, output], 2)


def clocked(words: Sequence[str | Path], threads: int) -> float:
    """Run a command, and return how many seconds it took."""
    started = time.perf_counter()
    environment = ENVIRONMENT | {"OMP_NUM_THREADS": str(threads)}
    subprocess.run(words, cwd=REPOSITORY, env=environment, check=True)
    return time.perf_counter() - started


@torch.no_grad()
def accuracies(weights: Path, data: Path) -> tuple[float, float]:
    """Return the share of the test set that a model has right, alone and with mirror images."""
    x, y = images(data, "test")
    model: nn.Module = net((3, 32, 32), 10).eval()
    tensors.load(model, weights)
    alone = torch.cat([model(some).softmax(1) for some in x.split(500)])
    both = alone + torch.cat([model(some.flip(3)).softmax(1) for some in x.split(500)])
    right = [(said.argmax(1) == y).float().mean().item() for said in (alone, both)]
    return right[0], right[1]


if __name__ == "__main__":
    main()
