"""PyTorch's own tests of torch.distributed, over Gloo and over MPI: `make torch-suite`.

Usage: python -m tests.mpi.torch_suite [RANKS]...

Prints how many pass, are skipped and fail at each number of ranks, and what differs between the
two. docs/mpi-tests.md accounts for it.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from tests.conftest import REPOSITORY, environment, mpirun

PROGRAM = REPOSITORY / "tests" / "mpi" / "programs" / "torch_suite.py"

# The tests that Gloo passes and MPI does not, and why: docs/mpi-tests.md has more.
_NO_EXCEPTION = "a call that is late ends the job, where Gloo raises an exception"
_GLOO_ALONE = "torch has monitored_barrier for Gloo alone"
EXPLAINED = {
    "test_barrier_timeout_full_group": _NO_EXCEPTION,
    "test_barrier_timeout_global": _NO_EXCEPTION,
    "test_barrier_timeout_group": _NO_EXCEPTION,
    "test_monitored_barrier_failure_order": _GLOO_ALONE,
    "test_monitored_barrier_gloo": _GLOO_ALONE,
    "test_monitored_barrier_gloo_rank_0_timeout": _GLOO_ALONE,
    "test_monitored_barrier_gloo_subgroup": _GLOO_ALONE,
    "test_monitored_barrier_wait_all_ranks": _GLOO_ALONE,
    "test_ddp_logging_data_cpu": "torch logs every backend that it does not bring as `custom`",
}

# Seconds that a start with many tests may take.
PATIENCE = 1200


class Outcome(NamedTuple):
    """What became of a test: passed, skipped or failed, and why."""

    what: str
    why: str = ""


def run_suite(backend: str, ranks: int, names: list[str] | None = None) -> dict[str, Outcome]:
    """Run tests over mpi4py or gloo; start again with the next one after each that fails.

    Args:
        backend: mpi4py or gloo.
        ranks: how many.
        names: the tests to run; all if there are none.
    """
    names = names or names_of_all()
    outcomes: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results"
        while left := [name for name in names if name not in outcomes]:
            results.write_text("")
            errors = _run([*mpirun(ranks), PROGRAM, backend, results, *left])
            found = [json.loads(line) for line in results.read_text().splitlines()]
            outcomes |= {
                one["test"]: Outcome(one["outcome"], one["why"]) for one in reversed(found)
            }
            if found and found[-1]["outcome"] == "failed":
                continue
            for name in [name for name in left if name not in outcomes][:1]:
                outcomes[name] = Outcome("failed", f"the job ended: {errors[-4000:]}")
    return outcomes


def names_of_all() -> list[str]:
    """Return the names of torch's tests."""
    command = [sys.executable, PROGRAM, "--list"]
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout.split()


def _run(words: list[object]) -> str:
    """Run a command to its end, or to the end of patience; return what it said as errors."""
    command = subprocess.Popen(
        [str(word) for word in words],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        return command.communicate(timeout=PATIENCE)[1]
    except subprocess.TimeoutExpired:
        os.killpg(command.pid, signal.SIGTERM)
        return f"not done within {PATIENCE} s: {command.communicate()[1]}"


def main(sizes: list[int]) -> None:
    """Run all tests at these numbers of ranks, over both backends, and print what differs."""
    print(f"{'ranks':>5} {'backend':>8} {'passed':>7} {'skipped':>8} {'failed':>7}")
    notes = []
    for ranks in sizes:
        both = {backend: run_suite(backend, ranks) for backend in ("gloo", "mpi4py")}
        for backend, outcomes in both.items():
            count = Counter(outcome.what for outcome in outcomes.values())
            numbers = f"{count['passed']:7} {count['skipped']:8} {count['failed']:7}"
            print(f"{ranks:5} {backend:>8} {numbers}", flush=True)
        for name, (what, why) in both["mpi4py"].items():
            gloo = both["gloo"][name]
            if what == "failed" or what != gloo.what:
                reason = EXPLAINED.get(name, why or gloo.why).strip()
                notes.append(f"{ranks} ranks: {name}: gloo {gloo.what}, mpi4py {what}: {reason}")
    print("\n".join(notes))


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]] or [2, 3, 4])
