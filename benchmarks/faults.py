"""How long from a fault to the end of all ranks?

    python -m benchmarks.faults [RANKS]

Trains digits on so many ranks of this machine (4), has a fault on rank 1 before step 40, and prints
the seconds from it until mpirun and every rank are gone, and mpirun's exit status. A rank that
hangs is found by the timeout, which is 5 s here and not counted.
"""

import contextlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from tests.conftest import REPOSITORY, environment, mpirun, prepare_digits

TIMEOUT = 5
FAULTS = {
    "raise": "raises an exception",
    "exit": "os._exit(0)",
    "kill": "kill -9",
    "kill-launcher": "kill -9 of mpirun",
    "hang": "hangs",
    "usr1": "SIGUSR1",
}


def main() -> None:
    ranks = int(sys.argv[1]) if len(sys.argv) > 1 else 4
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = prepare_digits(folder, [ranks])
        for action, what in FAULTS.items():
            seconds, status = measure(data, folder / action, ranks, action)
            seconds -= TIMEOUT if action == "hang" else 0
            print(f"{what:22} {seconds:5.1f} s   status {status}", flush=True)


def measure(data: Path, output: Path, ranks: int, action: str) -> tuple[float, int]:
    """Return the seconds from a fault to the end of all, and mpirun's exit status."""
    flags = ["--data", data, "--partition", data / str(ranks) / "shards.csv", "--output", output]
    flags += ["--ranks", ranks, "--shards", ranks, "--epochs", 200, "--oversubscribe"]
    flags += ["--timeout", TIMEOUT]
    log = output.with_suffix(".log")
    with log.open("w") as errors:
        job = subprocess.Popen(
            [str(word) for word in [*mpirun(ranks), "-m", "lockstep", "train", *flags]],
            cwd=REPOSITORY,
            env=environment() | {"LOCKSTEP_FAULT": f"step:40:1:{action}"},
            stderr=errors,
        )
        everyone: list[psutil.Process] = []
        while "fault: " not in log.read_text() and job.poll() is None:  # mpirun may not pass it on
            with contextlib.suppress(psutil.NoSuchProcess):
                everyone = psutil.Process(job.pid).children(recursive=True) or everyone
            time.sleep(0.02)
        began = time.time()
        status = job.wait()
        psutil.wait_procs(everyone)
    return time.time() - began, status


if __name__ == "__main__":
    main()
