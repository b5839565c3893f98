"""What is trained on the hosts, how it is launched there, and what must not depend on where."""

import json
import subprocess
import time
from pathlib import Path

from lockstep.distributed import launcher
from tests.conftest import environment
from tests.hosts.hosts import Host

EPOCHS = 10
SETTINGS = {"shards": 12, "batch": 96, "epochs": EPOCHS, "snapshots": 1}
HASHES = [f"{what}_sha256" for what in ("parameters", "optimizer", "history", "snapshots")]


def flags(data: Path, output: Path, ranks: int, *more: object) -> list[object]:
    """Return the words that follow `lockstep`."""
    words = ["train", "--data", data, "--partition", data / "12" / "shards.csv"]
    words += ["--output", output, "--ranks", ranks, "--oversubscribe"]
    words += ["--checkpoint-every", "10 steps"]
    return [*words, *(f"--{name}={value}" for name, value in SETTINGS.items()), *more]


def launch(ranks: int) -> list[object]:
    """Return the words that start `lockstep` on so many ranks on the hosts of `hostfile`."""
    mpirun = [
        *launcher.LOCAL,
        *launcher.BETWEEN_HOSTS,
        "-x",
        "PYTHONPATH",
        "--hostfile",
        "hostfile",
    ]
    return [*launcher.start(mpirun, ranks), "-m", "lockstep"]


class Job:
    """A command that goes on, on a host, and its log."""

    def __init__(self, host: Host, words: list[object], folder: Path) -> None:
        self.log = folder / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                host.words(words, folder), env=environment(), stdout=log, stderr=log
            )

    def said(self) -> str:
        """Return what it has printed so far."""
        return self.log.read_text()

    def wait_for(self, text: str) -> None:
        """Return when it has printed a text."""
        while text not in self.said():
            assert self.process.poll() is None, self.said()
            time.sleep(0.02)


def record(output: Path) -> dict:
    """Return the record of a result."""
    return json.loads((output / "train.json").read_text())


def hashes(output: Path) -> dict[str, str]:
    """Return the hashes of a result."""
    return {name: record(output)[name] for name in HASHES}


def places(output: Path) -> list[str]:
    """Return the host of each rank of a result."""
    return [rank["host"] for rank in record(output)["ranks"]]
