"""What data larger than memory cost: a rank's memory, and the speed with little of it.

    python -m benchmarks.large_data [FOLDER]

Makes 4 GB of images of 32 x 32 in FOLDER (a temporary one in this folder), and 4 MB of them. Trains
a linear model on 2 ranks with each, for an epoch, and prints the largest peak of a rank's memory.
Then, as root where Linux has control groups of memory, on one rank of 1 GB in all with its page
cache: with a window of 8,192 samples, and without.
"""

import contextlib
import sys
import tempfile
from pathlib import Path

import pytest

from tests.hosts.test_large_data import forget, memory_limit, prepared, train

IMAGE, FEW, MANY = 3072, 1_400, 1_400_000
LIMIT = 10**9


def main() -> None:
    """Measure, and print."""
    given = sys.argv[1:] and Path(sys.argv[1])
    with tempfile.TemporaryDirectory(dir=given or ".") as name:
        folders = [Path(name, str(count)) for count in (FEW, MANY)]
        for folder in folders:
            folder.mkdir()
        small, large = map(prepared, folders, (FEW, MANY))
        peaks = [
            train(data, data.with_name("two ranks"), 2, window=None)["peak_memory"] / 1e6
            for data in (small, large)
        ]
        print(
            f"peak memory of a rank: {peaks[0]:.0f} MB with {FEW * IMAGE / 1e6:.0f} MB of data, "
            f"{peaks[1]:.0f} MB with {MANY * IMAGE / 1e9:.1f} GB"
        )
        with contextlib.suppress(pytest.skip.Exception), memory_limit(LIMIT) as group:
            for window in (8192, None):
                forget(large)
                record = train(large, large.with_name(f"window {window}"), 1, group, window)
                print(
                    f"one rank with {LIMIT / 1e9:g} GB, a window of {window}: "
                    f"{record['images_per_second']:,.0f} images/s",
                    flush=True,
                )


if __name__ == "__main__":
    main()
