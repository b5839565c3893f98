"""How many ranks does one machine hold, and what do they take? A small CNN, S = 256.

    python -m benchmarks.scale [RANKS ...]

Trains ten steps of the digits on 1, 2, 8, 32 and 64 ranks (or as many as asked for), however few
cores there are. Prints for each how long all of it took, what a rank sent in a step beside
what the formula says, a rank's memory (its proportional share of what all of them map, and its
largest resident set), and the digest of the weights, which must be one.
"""

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from lockstep.pipeline.config import Dataset
from lockstep.pipeline.stages.download import download
from lockstep.pipeline.stages.partition import partition
from lockstep.pipeline.stages.prepare import prepare
from tests.conftest import REPOSITORY, environment

SHARDS, BATCH, EPOCHS = 256, 256, 2
# Bytes a shard that a step's sums take: loss, items and metrics, each there and back.
SUMS = 64


def main() -> None:
    """Measure, and print a row for each number of ranks."""
    digests = set()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        download(Dataset(), folder / "data")
        prepare(Dataset(), folder / "data")
        partition(folder / "data", "stratified", SHARDS, 0, 0.5, folder / "shards")
        print(
            "| ranks | s in all | bytes a rank and step | by formula | MB a rank | peak | weights |"
        )
        print("|---:|---:|---:|---:|---:|---:|---|")
        for ranks in map(int, sys.argv[1:] or ("1", "2", "8", "32", "64")):
            record, seconds, share = train(folder, ranks)
            sent = max(record["bytes_sent"]) / record["steps"]
            part = 1 - 1 / ranks
            formula = 2 * part * 4 * record["parameters"] + part * SUMS * SHARDS
            digests.add(record["parameters_sha256"])
            print(
                f"| {ranks} | {seconds:.0f} | {sent:,.0f} | {formula:,.0f} | {share / 1e6:.0f} | "
                f"{record['peak_memory'] / 1e6:.0f} | {record['parameters_sha256'][:12]} |",
                flush=True,
            )
    if len(digests) > 1:
        sys.exit("the weights are not the same")


def train(folder: Path, ranks: int) -> tuple[dict, float, float]:
    """Train, and return the record, the seconds, and the largest share of memory of a rank."""
    output = folder / "run"
    shutil.rmtree(output, ignore_errors=True)
    words = ["lockstep", "launch", "-n", str(ranks), "train", f"--data={folder}/data"]
    words += [f"--partition={folder}/shards/shards.csv", f"--output={output}", f"--ranks={ranks}"]
    words += [f"--shards={SHARDS}", f"--batch={BATCH}", f"--epochs={EPOCHS}", "--oversubscribe"]
    begun, share = time.monotonic(), 0.0
    process = subprocess.Popen(
        words,
        cwd=REPOSITORY,
        env=environment() | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None:
        time.sleep(1)
        with contextlib.suppress(psutil.Error):
            family = psutil.Process(process.pid)
            of_ranks = [
                one.memory_full_info().pss
                for one in (family, *family.children(recursive=True))
                if "train" in one.cmdline() and "launch" not in one.cmdline()
            ]
            share = max(share, sum(of_ranks) / ranks)
    if process.returncode:
        sys.exit(f"{ranks} ranks ended with status {process.returncode}")
    return json.loads((output / "train.json").read_text()), time.monotonic() - begun, share


if __name__ == "__main__":
    main()
