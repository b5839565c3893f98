"""Data that memory cannot hold: ranks with less of it train to the bits of those with plenty."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import REPOSITORY, mpirun, run

SAMPLES = 400_000  # of 3 KiB: 1.2 GB
LIMIT = 900 * 2**20  # bytes, of which two ranks without any data take 500 to 600 million
GROUPS = {  # where Linux has memory's control groups, and the file that holds a limit
    Path("/sys/fs/cgroup/memory"): "memory.limit_in_bytes",
    Path("/sys/fs/cgroup"): "memory.max",
}


@contextlib.contextmanager
def memory_limit(limit: int) -> Iterator[Path]:
    """Make a control group with so many bytes of memory, page cache and all; return its folder."""
    for root, file in GROUPS.items():
        folder = root / f"lockstep-{os.getpid()}"
        if os.access(root, os.W_OK):
            with contextlib.suppress(OSError):
                folder.mkdir()
            if (folder / file).exists():
                (folder / file).write_text(str(limit))
                try:
                    yield folder
                finally:
                    folder.rmdir()
                return
    pytest.skip("no control group of memory may be made here")


def forget(data: Path) -> None:
    """Drop a dataset from the page cache: what others have read counts as theirs."""
    for path in data.rglob("*.npy"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def lockstep(
    *words: object, launcher: Sequence[str] = (sys.executable,), group: Path | None = None
):
    """Run a stage, as one of a control group's processes if there is one."""
    enter = ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', group] if group else []
    done = run([*enter, *launcher, "-m", "lockstep", *words], REPOSITORY, timeout=600)
    assert done.returncode == 0, done.stderr


def prepared(folder: Path, samples: int) -> Path:
    """Prepare so many images of 3 KiB that are sorted by class, and deal them to shards."""
    different = min(samples, 4000)
    labels = np.arange(samples) * 10 // samples
    images = np.random.default_rng(0).integers(0, 256, (different, 32, 32, 3), np.uint8)
    images = np.tile(images, (samples // different, 1, 1, 1))
    images[np.arange(samples), labels] = 255
    parts = {"images": images, "labels": labels}
    some = {f"test_{name}": array[:: samples // 100] for name, array in parts.items()}
    np.savez(folder / "all.npz", **parts, **some)
    named = ("--name", "npz", "--path", folder / "all.npz", "--output", folder / "data")
    lockstep("download", *named)
    lockstep("prepare", *named)
    lockstep("partition", "--data", folder / "data", "--output", folder / "data")
    (folder / "all.npz").unlink()
    return folder / "data"


def train(
    data: Path, output: Path, ranks: int, group: Path | None = None, window: int | None = 8192
) -> dict:
    """Train a linear model for an epoch; return what train.json says."""
    launcher = mpirun(ranks) if ranks > 1 else [sys.executable]
    folders = ("--data", data, "--partition", data / "shards.csv", "--output", output)
    flags = ["--ranks", ranks, "--model", "linear", "--epochs", 1]
    flags += ["--shuffle-window", window] if window else []
    lockstep("train", *folders, *flags, launcher=launcher, group=group)
    return json.loads((output / "train.json").read_text())


def test_ranks_with_less_memory_than_the_data_train_to_the_same_bits(tmp_path):
    data = prepared(tmp_path, SAMPLES)
    plenty = train(data, tmp_path / "plenty", 1)
    with memory_limit(LIMIT) as group:
        forget(data)
        little = train(data, tmp_path / "little", 2, group)
    assert little["model_sha256"] == plenty["model_sha256"]
    # What is read of the data is no memory of a rank's, however much there is.
    assert plenty["peak_memory"] < SAMPLES * 3072
