"""One job in which ranks die and come back, many times: `python -m tests.mpi.long_walk [DEATHS]`.

Ranks are killed by `kill -9` from outside, one to all but one of them at a time, at random moments;
then it waits until as many have joined. In the end the bits are those of one process.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from tests.conftest import run
from tests.mpi.survivors import surviving
from tests.mpi.test_members import OWN, RECORDED

RANKS = 4
# Seconds that a shard takes: ranks train while others are started, and while they are killed.
PACE = 0.002


def ranks_of(job: int) -> list[psutil.Process]:
    """Return the processes of a job that run the script."""
    found = psutil.Process(job).children(recursive=True)
    return [one for one in found if one.name().startswith("python")]


def walk(deaths: int, script: Path, folder: Path, seed: int = 0) -> tuple[int, list[float]]:
    """Kill ranks of a job until so many have died; return the deaths and the seconds to go on.

    Raises:
        AssertionError: the job ended, or ranks did not come back.
    """
    draw = random.Random(seed)
    log = (folder / "log").open("w+")
    words = [*map(str, surviving(RANKS)), str(script), str(folder / "many"), "replace", str(PACE)]
    job = subprocess.Popen(words, cwd=folder, stderr=log, stdout=log)
    while not (folder / "many" / "checkpoints" / "lock").exists():
        time.sleep(0.05)
    time.sleep(1)
    killed, joined = 0, 0
    while killed < deaths:
        there = ranks_of(job.pid)
        assert len(there) == RANKS, (len(there), said(log))
        for one in draw.sample(there, draw.randint(1, RANKS - 1)):
            os.kill(one.pid, signal.SIGKILL)
            killed += 1
            time.sleep(draw.choice([0, 0.001, 0.05]))
        until = time.monotonic() + 120
        while True:
            assert job.poll() is None, said(log)
            assert time.monotonic() < until, said(log)
            lines = re.findall(r"^joined after step \d+: (.*?);", said(log), re.M)
            now = sum(line.count("rank") for line in lines)
            if now >= killed:
                break
            time.sleep(0.05)
        joined = now
        time.sleep(draw.random())
    (folder / "stop").touch()
    assert job.wait(120) == 0, said(log)
    assert joined == killed
    text = said(log)
    return killed, [float(s) for s in re.findall(r"go on, ([\d.]+) s later", text)]


def said(log) -> str:
    """Return what the job has printed so far."""
    return Path(log.name).read_text(errors="replace")


def main() -> None:
    """Walk, and compare."""
    deaths = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        script = folder / "own.py"
        # As many steps as it takes: the last one is when all have died that are to.
        script.write_text(
            OWN.replace("epochs=60", "epochs=100_000")
            .replace(
                "        scheduler.step()\n",
                "        scheduler.step()\n"
                "        if step.number % 100 == 0:\n"
                "            found = torch.tensor(float(os.path.exists('stop')))\n"
                "            torch.distributed.all_reduce(found)\n"
                "            if found > 0: run.stop()\n",
            )
            .replace("import sys,", "import os, sys,")
        )
        started = time.monotonic()
        killed, seconds = walk(deaths, script, folder)
        many = json.loads((folder / "many" / "run.json").read_text())
        # The same number of steps by one process, undisturbed.
        script.write_text(
            OWN.replace("epochs=60", "epochs=100_000").replace(
                "        scheduler.step()\n",
                "        scheduler.step()\n"
                f"        if step.number + 1 == {many['steps']}: run.stop()\n",
            )
        )
        done = run([sys.executable, script, "alone", "none", 0], folder, timeout=1200)
        assert done.returncode == 0, done.stderr
        one = json.loads((folder / "alone" / "run.json").read_text())
        same = all(one[key] == many[key] for key in RECORDED)
        print(
            f"{killed} deaths and returns in one job of {RANKS} ranks, {many['steps']} steps: "
            f"{'the bits of one process' if same else 'OTHER BITS'}; to go on "
            f"{max(seconds):.2f} s at most; {time.monotonic() - started:.0f} s in all"
        )
        sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
