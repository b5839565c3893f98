"""Models drawn at random: any strategy gives the bits of one process, or one line that refuses."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY, mpirun, run
from tests.mpi.matrix import PARTS

# These have, between them, each kind of block, and each kind of refusal.
NUMBERS = range(10)

STRATEGIES: dict[str, dict[str, Any]] = {
    "single": {"strategy": "single"},
    "sync_sgd": {"strategy": "sync_sgd"},
    "fsdp": {"strategy": "fsdp"},
    "pipeline": {"strategy": "pipeline"},
    "local_sgd": {"strategy": "local_sgd", "sync_every": 3},
}
# The strategies of each number of ranks. What was begun on one rank goes on on two.
LAUNCHES = {
    1: ("single", "fsdp", "pipeline", "local_sgd"),
    2: ("sync_sgd", "fsdp", "pipeline", "local_sgd"),
}


def values(number: int) -> dict[str, Any]:
    """Return what a run has beside its strategy: 8 steps of 4 shards of 88 images."""
    return {
        "model": f"tests.mpi.drawn:m{number}",
        "shards": 4,
        "batch": 352,
        "epochs": 2,
        "snapshots": 1,
        "optimizer": ("adamw", "sgd")[number % 2],
        "clip": (None, 0.5)[number // 2 % 2],
        "checkpoint_every": "3 steps",
        "timeout": 60.0,
    }


def train_drawn(numbers: Iterable[int], data: Path, folder: Path) -> dict[tuple, dict[str, Any]]:
    """Train each model by each strategy; return the records by (number, strategy, ranks)."""
    numbers = list(numbers)
    found = {}
    for ranks, strategies in LAUNCHES.items():
        keys = [(number, strategy, ranks) for number in numbers for strategy in strategies]
        runs = [("-".join(map(str, k)), None, values(k[0]) | STRATEGIES[k[1]]) for k in keys]
        for number in numbers:
            stop = 5 if ranks == 1 else None
            runs.append((f"{number}-resumed", stop, values(number) | STRATEGIES["sync_sgd"]))
        commands = folder / f"{ranks}.json"
        commands.write_text(json.dumps(runs))
        launcher = mpirun(ranks) if ranks > 1 else [sys.executable]
        program = [*launcher, "-m", "tests.mpi.programs.drawn", commands, data, folder]
        done = run(program, REPOSITORY, timeout=1800)
        assert done.returncode == 0, done.stderr
        keys += [(number, "resumed", ranks) for number in numbers if ranks > 1]
        for number, strategy, _ in keys:
            name = f"{number}-{strategy}" + ("" if strategy == "resumed" else f"-{ranks}")
            found[number, strategy, ranks] = json.loads((folder / f"{name}.json").read_text())
    return found


def wrong(found: dict[tuple, dict[str, Any]]) -> list[str]:
    """Return a line for each run that neither has the bits of one process nor was refused."""
    lines = []
    for (number, strategy, ranks), record in found.items():
        alone = "local_sgd" if strategy == "local_sgd" else "single"
        reference = found[number, alone, 1]
        if "error" in record:
            lines.append(f"m{number} {strategy} on {ranks}: {record['error']}")
        elif "refused" in record:
            if strategy in ("sync_sgd", "local_sgd", "resumed") and "refused" not in reference:
                lines.append(f"m{number} {strategy} on {ranks}: {record['refused']}")
        elif "model_sha256" not in reference:
            lines.append(f"m{number} {strategy} on {ranks}: trained; on one: {reference}")
        else:
            odd = [part for part, key in PARTS.items() if record[key] != reference[key]]
            lines += [f"m{number} {strategy} on {ranks}: other {', '.join(odd)}"] if odd else []
    return lines


@pytest.fixture(scope="module")
def found(digits, tmp_path_factory):
    return train_drawn(NUMBERS, digits, tmp_path_factory.mktemp("drawn"))


def test_any_strategy_has_the_bits_of_one_process_or_refuses(found):
    assert not wrong(found), "\n".join(wrong(found))


def test_some_models_are_trained_by_every_strategy_and_some_by_none(found):
    refused = [
        [("refused" in record) for (n, _, _), record in found.items() if n == m] for m in NUMBERS
    ]
    assert any(all(some) for some in refused)
    assert any(not any(some) for some in refused)


if __name__ == "__main__":
    folder = Path(sys.argv[3])
    folder.mkdir()
    results = train_drawn(range(int(sys.argv[1]), int(sys.argv[2])), Path(sys.argv[4]), folder)
    print(*wrong(results), sep="\n")
