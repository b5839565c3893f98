"""What data larger than memory cost: a rank's memory, and the speed with little of it.

    python -m benchmarks.large_data [FOLDER]

Makes 4 GB of images of 32 x 32 in FOLDER (a temporary one in this folder), and 4 MB of them. Trains
a linear model on 2 ranks with each, for an epoch, and prints the largest peak of a rank's memory.
Then, as root where Linux has control groups of memory, on one rank of 1 GB in all with its page
cache: with a window of 8,192 samples, and without.
"""

import contextlib
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import mpirun
from tests.hosts.test_large_data import forget, lockstep, memory_limit

IMAGE, FEW, MANY = 3072, 1_400, 1_400_000
LIMIT = 10**9
WINDOW = 8192


def main() -> None:
    """Measure, and print."""
    given = sys.argv[1:] and Path(sys.argv[1])
    with tempfile.TemporaryDirectory(dir=given or ".") as name:
        folder = Path(name)
        small, large = (make(folder / str(count), count) for count in (FEW, MANY))
        peaks = [train(data, 2)["peak_memory"] / 1e6 for data in (small, large)]
        print(
            f"peak memory of a rank: {peaks[0]:.0f} MB with {FEW * IMAGE / 1e6:.0f} MB of data, "
            f"{peaks[1]:.0f} MB with {MANY * IMAGE / 1e9:.1f} GB"
        )
        with contextlib.suppress(pytest.skip.Exception), memory_limit(LIMIT) as group:
            for what, flags in ((f"a window of {WINDOW:,}", WINDOW), ("no window", None)):
                forget(large)
                speed = train(large, 1, group, flags)["images_per_second"]
                print(
                    f"one rank with {LIMIT / 1e9:g} GB, {what}: {speed:,.0f} images/s", flush=True
                )


def make(folder: Path, count: int) -> Path:
    """Prepare so many images that are sorted by class, and deal them to shards."""
    folder.mkdir()
    labels = np.arange(count) * 10 // count
    images = np.random.default_rng(0).integers(0, 256, (1400, 32, 32, 3), np.uint8)
    images = np.tile(images, (count // len(images), 1, 1, 1))
    images[np.arange(count), labels] = 255
    parts = {"images": images, "labels": labels}
    some = {f"test_{name}": array[:: count // 100] for name, array in parts.items()}
    np.savez(folder / "all.npz", **parts, **some)
    named = ("--name", "npz", "--path", folder / "all.npz", "--output", folder / "data")
    lockstep("download", *named, group=None)
    lockstep("prepare", *named, group=None)
    lockstep("partition", "--data", folder / "data", "--output", folder / "data", group=None)
    (folder / "all.npz").unlink()
    return folder / "data"


def train(
    data: Path, ranks: int, group: Path | None = None, window: int | None = None
) -> dict[str, Any]:
    """Train for an epoch; return what train.json says."""
    output = data.parent / "run"
    shutil.rmtree(output, ignore_errors=True)
    launcher = tuple(mpirun(ranks)) if ranks > 1 else (sys.executable,)
    folders = ("--data", data, "--partition", data / "shards.csv", "--output", output)
    flags = ("--ranks", ranks, "--model", "linear", "--epochs", 1)
    flags += ("--shuffle-window", window) if window else ()
    lockstep("train", *folders, *flags, launcher=launcher, group=group, timeout=600)
    return json.loads((output / "train.json").read_text())


if __name__ == "__main__":
    main()
