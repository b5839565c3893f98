"""Lockstep beside what anyone would pick instead: the same network, data, optimizer and batch.

    python -m benchmarks.head_to_head [--data data/mnist] [--turns 5] [--json FILE] [ROW ...]

Every contender trains in processes of its own, as its users start them, on two ranks of one thread;
the first epoch of each does not count. They take turns, so that whatever else the machine does
meets them alike. Prints the medians of samples per second, and against the best of the peers the
median of the ratios within a turn, with the lowest and the highest. It refuses on a busy machine.
"""

import argparse
import importlib.metadata
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil

from lockstep.errors import UserError
from lockstep.pipeline.config import Dataset, Run
from lockstep.pipeline.stages.partition import partition
from lockstep.pipeline.stages.prepare import prepare
from tests.conftest import REPOSITORY, environment

RANKS, SHARDS = 2, 4
ENVIRONMENT = environment() | {
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": f"{REPOSITORY}/src:{REPOSITORY}",
}
BUSIEST = 0.25
"""The share of the cores that others may use before times mean nothing."""

TORCHRUN = ["torchrun", "--standalone", f"--nproc-per-node={RANKS}", "-m"]
PEERS = {
    "DDP": [*TORCHRUN, "benchmarks.peers.ddp"],
    "DDP, 2 workers": [*TORCHRUN, "benchmarks.peers.ddp", "--workers=2"],
    "Fabric": ["python", "-m", "benchmarks.peers.fabric"],
    "Accelerate": [*TORCHRUN, "benchmarks.peers.accelerated"],
    "by hand": [*TORCHRUN, "benchmarks.peers.by_hand"],
}
GPT = {"DDP": [*TORCHRUN, "benchmarks.peers.gpt", "ddp"]}
PLAIN = {"plain torch": ["python", "-m", "benchmarks.peers.plain"]}
# Ourselves: what two ranks make of one rank's work.
ALONE = "Lockstep, one rank"


@dataclass(frozen=True)
class Row:
    """What is compared: a model on data, trained so, by us on so many ranks and by these peers."""

    model: str
    precision: str
    batch: int
    samples: int
    target: float
    """How many times as fast as the best of the peers it is to be, at least."""
    ranks: int = RANKS
    peers: dict[str, list[str]] = field(default_factory=lambda: PEERS)
    shape: tuple[int, int, int] | None = None
    """Of made-up images; None: the first samples of the data that were given."""


# The script says what it trains, and its peer with it.
OWN_LOOP = ["lockstep", "launch", "-n", str(RANKS), "benchmarks/peers/gpt.py", "lockstep"]
ROWS = {
    "cnn": Row("cnn", "float32", 128, 12_800, 2.5),
    "cnn-bfloat16": Row("cnn", "bfloat16", 128, 12_800, 3.2),
    "cnn-alone": Row("cnn", "float32", 128, 12_800, 0.97, 1, PLAIN),
    "cnn-two-ranks": Row("cnn", "float32", 128, 12_800, 1.9, peers={ALONE: []}),
    "gpt": Row("", "float32", 32, 640, 1.1, peers=GPT),
    "resnet18": Row("resnet18", "float32", 128, 384, 1.2, shape=(32, 32, 3)),
    "resnet18-bfloat16": Row("resnet18", "bfloat16", 128, 384, 1.5, shape=(32, 32, 3)),
}
EPOCHS, LR = 3, 0.05


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}; all")
    parser.add_argument("--data", type=Path, default=Path("data/mnist"))
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if odd := [name for name in args.rows if name not in ROWS]:
        parser.error(f"there is no row {odd[0]}; take some of {', '.join(ROWS)}")
    if (busy := psutil.cpu_percent(interval=3) / 100) > BUSIEST:
        sys.exit(f"{busy:.0%} of this machine is busy: times would mean nothing; wait, then again")
    record: dict[str, Any] = {"machine": machine(), "rows": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name in args.rows or ROWS:
            turns = compare(ROWS[name], args.data, Path(folder, name), args.turns)
            found = judge(ROWS[name], turns)
            record["rows"][name] = asdict(ROWS[name]) | found | {"turns": turns}
            show(name, ROWS[name], found)
            if args.json:
                args.json.parent.mkdir(parents=True, exist_ok=True)
                args.json.write_text(json.dumps(record, indent=2))


def machine() -> dict[str, Any]:
    """Return what times depend on, and which versions they are of."""
    names = ("torch", "lightning-fabric", "accelerate", "mpi4py", "numpy")
    return {
        "cores": os.cpu_count(),
        "threads": 1,
        "load": os.getloadavg()[0],
        "versions": {name: importlib.metadata.version(name) for name in names},
    }


Turns = dict[str, list[dict[str, Any]]]


def compare(row: Row, source: Path, folder: Path, turns: int) -> Turns:
    """Run all contenders in turns, and return the rates and the accuracies of each by turn."""
    contenders = {"Lockstep": OWN_LOOP} | row.peers
    if row.model:
        data = dataset(row, source, folder)
        flags = [f"--data={data}", f"--model={row.model}", f"--batch={row.batch}", f"--lr={LR}"]
        flags += [f"--epochs={EPOCHS}", f"--precision={row.precision}"]
        contenders = {name: [*words, *flags] for name, words in row.peers.items()}
        contenders["Lockstep"] = lockstep(row, data, folder)
        if ALONE in contenders:
            contenders[ALONE] = lockstep(replace(row, ranks=1), data, folder)
    turned: Turns = {name: [] for name in contenders}
    for turn in range(turns):
        names = list(contenders)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            turned[name].append(once(name, contenders[name], folder))
    return turned


def dataset(row: Row, source: Path, folder: Path) -> Path:
    """Prepare the first samples of MNIST's, or made-up ones; return the folder."""
    folder.mkdir()
    count = row.samples + 1000
    if row.shape:
        draw = np.random.default_rng(0)
        images = draw.integers(0, 256, (count, *row.shape), np.uint8)
        labels = np.arange(count) % 10
    elif not (source / "train/images.npy").exists():
        raise UserError(f"{source}: no prepared dataset; make data with `lockstep prepare` first")
    else:
        images = np.load(source / "train/images.npy", mmap_mode="r")[:count]
        labels = np.load(source / "train/labels.npy", mmap_mode="r")[:count]
    np.savez(folder / "some.npz", images=images, labels=labels)
    dataset = Dataset(name="npz", path=str(folder / "some.npz"), test_fraction=1000 / count)
    prepare(dataset, folder / "data")
    partition(folder / "data", "stratified", SHARDS, 0, 0.5, folder / "shards")
    return folder / "data"


def lockstep(row: Row, data: Path, folder: Path) -> list[str]:
    """Return the words that train our way."""
    start = ["lockstep", "launch", "-n", str(row.ranks)] if row.ranks > 1 else ["lockstep"]
    run = Run(
        model=row.model,
        precision=row.precision,
        batch=row.batch,
        shards=SHARDS,
        ranks=row.ranks,
        epochs=EPOCHS,
        optimizer="sgd",
        schedule="constant",
        lr=LR,
    )
    settings = run.model_dump(exclude_unset=True)
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    files = [f"--data={data}", f"--partition={folder}/shards/shards.csv"]
    return [*start, "train", *files, f"--output={folder}/run", *flags]


def once(name: str, words: Sequence[str], folder: Path) -> dict[str, Any]:
    """Run a contender, and return its rates by epoch and what else it says."""
    shutil.rmtree(folder / "run", ignore_errors=True)
    done = subprocess.run(
        words, cwd=REPOSITORY, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise UserError(f"{name}: status {done.returncode}: {done.stderr[-2000:]}")
    history = folder / "run/history.csv"
    if name not in ("Lockstep", ALONE) or not history.exists():
        return json.loads(done.stdout.splitlines()[-1])
    epochs = pd.read_csv(history)
    waited = epochs["communication_seconds"] / epochs["seconds"]
    idle = epochs["idle_seconds"] / epochs["seconds"]
    for stage in ("average", "evaluate"):
        files = [f"--results={folder}/run", f"--data={folder}/data"]
        subprocess.run(["lockstep", stage, *files], cwd=REPOSITORY, env=ENVIRONMENT, check=True)
    return {
        "rates": epochs["images_per_second"].tolist(),
        "communication": waited[1:].median(),
        "idle": idle[1:].median(),
        "accuracy": json.loads((folder / "run/metrics.json").read_text())["last"]["accuracy"],
    }


def rates(turns: Sequence[dict[str, Any]]) -> list[float]:
    """Return the rate of each turn: the median of its epochs, without the first."""
    return [statistics.median(turn["rates"][1:]) for turn in turns]


def judge(row: Row, turns: Turns) -> dict[str, Any]:
    """Return the median rate of each contender, and against the best of the peers the median of the
    ratios, the lowest and the highest."""
    by = {contender: rates(some) for contender, some in turns.items()}
    speeds = {contender: statistics.median(some) for contender, some in by.items()}
    best = max(row.peers, key=lambda peer: speeds[peer])
    ratios = [ours / theirs for ours, theirs in zip(by["Lockstep"], by[best], strict=True)]
    found = {"speeds": speeds, "best": best, "ratio": statistics.median(ratios)}
    found |= {"lowest": min(ratios), "highest": max(ratios)}
    found["accuracies"] = {name: some[-1].get("accuracy") for name, some in turns.items()}
    for name in ("communication", "idle"):
        shares = [turn[name] for turn in turns["Lockstep"] if name in turn]
        found |= {name: statistics.median(shares)} if shares else {}
    return found


def show(name: str, row: Row, found: dict[str, Any]) -> None:
    """Print what was found of a row."""
    waited = ""
    if "communication" in found:
        waited = f"; {found['communication']:.1%} of it communication, {found['idle']:.1%} idle"
    print(
        f"{name}: {found['ratio']:.2f} times {found['best']} ({found['lowest']:.2f} to "
        f"{found['highest']:.2f}), {'as' if found['ratio'] >= row.target else 'less than'} asked "
        f"({row.target}){waited}"
    )
    for contender, speed in found["speeds"].items():
        right = found["accuracies"][contender]
        more = "" if right is None else f", accuracy {right:.4f}"
        print(f"  {contender:16}{speed:>10,.0f} a second{more}", flush=True)


if __name__ == "__main__":
    main()
