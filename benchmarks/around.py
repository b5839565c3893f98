"""What the pipeline takes around the training, on the digits.

    python -m benchmarks.around

Prints the wall time of the default configuration from start to end, of a table of 12 runs by run
and beyond the sum of the training, and of a dry run of a table of 1,000.
"""

import json
import subprocess
import tempfile
import time
from pathlib import Path

import pandas as pd

from tests.conftest import REPOSITORY, environment

RUNS, MANY = 12, 1000


def main() -> None:
    """Measure, and print a row for each."""
    print("| what | s |\n|---|---:|")
    with tempfile.TemporaryDirectory() as name:
        seconds = workflow(Path(name), 1, "--forceall")
        print(f"| default configuration | {seconds:.0f} |", flush=True)
        seconds = workflow(Path(name, "table"), RUNS)
        training = pd.read_csv(Path(name, "table/results/summary.csv"))["seconds"].sum()
        beyond = (seconds - training) / RUNS
        print(f"| a run of {RUNS}, beyond its training | {beyond:.1f} |", flush=True)
        seconds = workflow(Path(name, "dry"), MANY, "--dry-run")
        print(f"| a dry run of {MANY:,} runs | {seconds:.0f} |", flush=True)


def workflow(folder: Path, runs: int, *flags: str) -> float:
    """Run the workflow with so many seeds, results in `folder`, and return how long it took."""
    places = {name: str(folder / name) for name in ("results", "logs")}
    config = [f"pathvars={json.dumps(places)}", f"grid={json.dumps({'seed': [*range(runs)]})}"]
    started = time.perf_counter()
    subprocess.run(
        ["snakemake", "--cores", "all", "--quiet", "all", *flags, "--config", *config],
        cwd=REPOSITORY,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
