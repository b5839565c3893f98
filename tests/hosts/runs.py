"""What is trained on the hosts, and what must not depend on where."""

import json
from pathlib import Path

# So many epochs take a while, and their lines in the log tell how far a run has got.
EPOCHS = 6
HASHES = [f"{what}_sha256" for what in ("parameters", "optimizer", "history", "snapshots")]

# As workflow/rules/common.smk does it.
MPIRUN = "mpirun --map-by :OVERSUBSCRIBE --bind-to none --mca btl ^ofi -x PATH -x PYTHONPATH"
KEEPALIVE = {"time": 5, "intvl": 1, "probes": 3}


def flags(data: Path, output: Path, ranks: int, *more: object) -> list[object]:
    """Return the words that follow `lockstep`."""
    words = ["train", "--data", data, "--partition", data / "12" / "shards.csv"]
    words += ["--output", output, "--epochs", EPOCHS, "--snapshots", 1, "--shards", 12]
    return [*words, "--batch", 96, "--ranks", ranks, "--oversubscribe", *more]


def launch(ranks: int, hostfile: Path) -> list[object]:
    """Return the words that start Python on so many ranks on the hosts of a file."""
    words: list[object] = [*MPIRUN.split(), "--allow-run-as-root", "--hostfile", hostfile]
    for name, value in KEEPALIVE.items():
        words += ["--prtemca", f"oob_tcp_keepalive_{name}", value]
    return [*words, "-n", ranks, "python", "-m", "mpi4py", "-m", "lockstep"]


def hashes(output: Path) -> dict[str, str]:
    """Return the hashes of a result."""
    record = json.loads((output / "train.json").read_text())
    return {name: record[name] for name in HASHES}


def places(output: Path) -> list[str]:
    """Return the host of each rank of a result."""
    return [rank["host"] for rank in json.loads((output / "train.json").read_text())["ranks"]]
