"""Models drawn at random, trained by each strategy, and compared with one process.

`python -m tests.mpi.drawn_runs` (`make promise`) does it with many, and writes their table.
"""

import json
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.conftest import REPOSITORY, mpirun, prepare_digits
from tests.crew import run_shared
from tests.mpi.drawn import draw
from tests.mpi.matrix import PARTS

TABLE = REPOSITORY / "docs" / "drawn-models.md"
MANY = 40

STRATEGIES: dict[str, dict[str, Any]] = {
    "single": {"strategy": "single"},
    "sync_sgd": {"strategy": "sync_sgd"},
    "fsdp": {"strategy": "fsdp"},
    "pipeline": {"strategy": "pipeline"},
    "local_sgd": {"strategy": "local_sgd", "sync_every": 3},
    "resumed": {"strategy": "sync_sgd"},  # begun on one rank, it goes on on two
}
# The strategies of each number of ranks, and the step before which a run ends.
LAUNCHES: dict[int, dict[str, int | None]] = {
    1: {"single": None, "fsdp": None, "pipeline": None, "local_sgd": None, "resumed": 5},
    2: {"sync_sgd": None, "fsdp": None, "pipeline": None, "local_sgd": None, "resumed": None},
}

# What may be refused, by which strategy: by all of them, what the model must not do.
REFUSALS = {
    "": r"two passes over the same samples|share memory|no checkpoint (could|would) keep it",
    "fsdp": r"fsdp cannot shard \S+, (a single number|which lies in memory transposed)",
    "pipeline": r"cannot be cut into stages|too few for \d+ stages",
}

Key = tuple[int, str, int]
"""A model's number, the strategy, and the number of ranks."""


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


def train_drawn(numbers: Iterable[int], data: Path, folder: Path) -> dict[Key, dict[str, Any]]:
    """Train each model by each strategy; return what came of it.

    Args:
        numbers: those of the models.
        data: the prepared digits, with the partition into 4 shards in the folder 4.
        folder: an empty folder.

    Returns:
        What train.json holds, or {"refused": line}, or {"error": text}.
    """
    numbers, found = list(numbers), {}
    for ranks, strategies in LAUNCHES.items():
        names, runs = {}, []
        for number in numbers:
            for strategy, stop in strategies.items():
                name = f"{number}-{strategy}" + ("" if strategy == "resumed" else f"-{ranks}")
                runs.append((name, stop, values(number) | STRATEGIES[strategy]))
                if stop is None:
                    names[number, strategy, ranks] = name
        commands = folder / f"{ranks}.json"
        commands.write_text(json.dumps(runs))
        launcher = mpirun(ranks) if ranks > 1 else [sys.executable]
        program = [*launcher, "-m", "tests.mpi.programs.drawn", commands, data, folder]
        done = run_shared(program, REPOSITORY, timeout=3600)
        assert done.returncode == 0, done.stderr
        found |= {k: json.loads((folder / f"{name}.json").read_text()) for k, name in names.items()}
    return found


def reference(key: Key) -> Key:
    """Return the run on one process that has the bits."""
    return key[0], "local_sgd" if key[1] == "local_sgd" else "single", 1


def verdict(key: Key, found: dict[Key, dict[str, Any]]) -> str:
    """Return `=`, `refused`, or what is wrong with a run: it has other bits, or failed.

    fsdp and pipeline may refuse some of what one process can train, and no strategy may train what
    one process refuses.
    """
    record, alone = found[key], found[reference(key)]
    if "error" in record:
        return record["error"]
    if "refused" in record:
        reasons = REFUSALS.get("" if "refused" in alone else key[1], "no reason")
        good = re.search(reasons, record["refused"])
        return "refused" if good else f"refused: {record['refused']}"
    if "refused" in alone:
        return f"trained, though one process refused: {alone['refused']}"
    odd = [part for part, name in PARTS.items() if record[name] != alone[name]]
    return f"other {', '.join(odd)}" if odd else "="


def verdicts(found: dict[Key, dict[str, Any]]) -> dict[Key, str]:
    """Return the verdict on each run."""
    return {key: verdict(key, found) for key in found}


def main() -> None:
    """Train many models, print what is wrong, and write the table for the documentation."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = train_drawn(range(MANY), prepare_digits(folder, [4]), folder)
    judged = verdicts(found)
    wrong = {key: text for key, text in judged.items() if text not in ("=", "refused")}
    for key, text in wrong.items():
        print(*key, text, file=sys.stderr)
    runs = [(strategy, ranks) for _, strategy, ranks in judged if _ == 0]
    head = ["model", *(f"{strategy} {ranks}" for strategy, ranks in runs), "made of"]
    lines = [head, ["---"] * len(head)]
    for number in range(MANY):
        model = draw(number, (1, 28, 28), 10)
        kinds = [type(block).__name__ for block in model.children()]
        if len(kinds) == 1:  # a list of blocks
            kinds = [type(block).__name__ for block in model.parts]
        cells = [judged[number, strategy, ranks] for strategy, ranks in runs]
        blocks = ", ".join(kinds[3:-1])
        lines.append([f"m{number}", *cells, f"{type(model).__name__}: {blocks}"])
    count = Counter("other" if key in wrong else text for key, text in judged.items())
    said = (
        f"{MANY} models, {len(judged)} runs: {count['=']} with the bits of one process, "
        f"{count['refused']} refused, {count['other']} other"
    )
    TABLE.write_text(
        "# Models drawn at random\n\n"
        "Written by `make promise`; see [the promise](promise.md#what-a-model-may-do). Blocks that "
        "occur twice, tied weights, parameters cut out of others, buffers assigned anew, things "
        "that a model should not do: [drawn.py](../tests/mpi/drawn.py) draws them, each strategy "
        "trains them on 1 and 2 ranks with new memory filled with NaN, and `resumed` was begun on "
        "one rank and goes on on two. `=` says that weights, buffers, optimizer, history and "
        "snapshots are those of one process.\n\n"
        f"**{said}.**\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)
    )
    print(f"{said}; {time.monotonic() - started:.0f} s; see {TABLE}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
