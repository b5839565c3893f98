"""The promise's matrix: what is varied, what is compared, and the table of all of it.

`python -m tests.mpi.matrix` (`make promise`) trains every point through real mpirun, compares it
with one process, and writes docs/promise-matrix.md. The tests take points that cover every pair of
two axes' values.
"""

import hashlib
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.conftest import REPOSITORY, mpirun, prepare_digits
from tests.crew import run_shared

TABLE = REPOSITORY / "docs" / "promise-matrix.md"

RANKS = (1, 2, 3, 4, 6, 8)
SHARDS = (4, 8, 12)
TRANSPORTS = {"MPI": ["--backend", "mpi4py"], "Gloo": ["--backend", "gloo"]}
MODELS = {
    "CNN": ["--model", "cnn"],
    "ResNet with BatchNorm": ["--model", "tests.mpi.models:resnet"],
    "CNN with dropout": ["--model", "tests.mpi.models:dropout"],
}
OPTIMIZERS = {
    "SGD": ["--optimizer", "sgd", "--lr", "0.05"],
    "AdamW, clipped": ["--optimizer", "adamw", "--lr", "0.01", "--clip", "0.5"],
}
AUGMENTATIONS = {"off": [], "on": ["--shift", "2", "--flip"]}

SINGLE = ["--strategy", "single"]
LOCAL = ["--strategy", "local_sgd", "--sync-every"]


class Strategy(NamedTuple):
    """A strategy's flags, those of one process that gives the same bits, and ranks by shards."""

    flags: list[str]
    reference: list[str]
    ranks: dict[int, tuple[int, ...]]


USUAL = {"sync_sgd": Strategy([], SINGLE, {4: (1, 2, 4), 8: (1, 2, 4, 8), 12: (1, 2, 3, 4, 6)})}
OTHERS = {
    "local_sgd": Strategy([*LOCAL, "5"], [*LOCAL, "5"], {8: (1, 2, 4, 8), 12: (1, 3, 6)}),
    "local_sgd, one shot": Strategy([*LOCAL, "0"], [*LOCAL, "0"], {8: (1, 2, 8), 12: (3, 4)}),
    "pipeline": Strategy(["--strategy", "pipeline"], SINGLE, {8: (1, 2, 3, 4), 12: (2, 3, 4)}),
    "fsdp": Strategy(["--strategy", "fsdp"], SINGLE, {8: (2, 4, 8), 12: (1, 3, 6)}),
    "hybrid, 1F1B": Strategy(
        ["--strategy", "hybrid", "--stages", "2", "--pipeline-schedule", "1f1b"],
        SINGLE,
        {8: (2, 4, 8), 12: (2, 4, 6, 8)},
    ),
}
STRATEGIES = USUAL | OTHERS

# What is compared, and where train.json has its hash.
PARTS = {
    "weights": "parameters_sha256",
    "BatchNorm statistics": "buffers_sha256",
    "optimizer state": "optimizer_sha256",
    "history": "history_sha256",
    "snapshots": "snapshots_sha256",
}


class Configuration(NamedTuple):
    """What the result may depend on."""

    shards: int
    model: str
    optimizer: str
    augmentation: str
    strategy: str = "sync_sgd"

    @property
    def flags(self) -> list[str]:
        """The flags of `lockstep train`, but for those that say how it is launched."""
        sizes = [
            "--shards",
            str(self.shards),
            "--batch",
            "288",
            "--epochs",
            "2",
            "--snapshots",
            "1",
        ]
        return [
            *(*sizes, *MODELS[self.model], *OPTIMIZERS[self.optimizer]),
            *AUGMENTATIONS[self.augmentation],
        ]


class Point(NamedTuple):
    """A configuration, and how it is launched: what the result must not depend on."""

    configuration: Configuration
    ranks: int
    transport: str

    @property
    def values(self) -> tuple[object, ...]:
        """The value of each axis."""
        return (*self.configuration, self.ranks, self.transport)


def all_points() -> list[Point]:
    """Return the full matrix of the usual strategy: the ranks divide the shards."""
    axes = (SHARDS, MODELS, OPTIMIZERS, AUGMENTATIONS, USUAL)
    return [
        Point(Configuration(*values), ranks, transport)
        for values in itertools.product(*axes)
        for ranks in USUAL[values[4]].ranks[values[0]]
        for transport in TRANSPORTS
    ]


def points_of_other_strategies() -> list[Point]:
    """Return points for the strategies beside the usual one: a configuration for each S."""
    return [
        Point(Configuration(shards, model, "AdamW, clipped", "on", strategy), ranks, transport)
        for strategy in OTHERS
        for shards, model in ((8, "ResNet with BatchNorm"), (12, "CNN with dropout"))
        for ranks in OTHERS[strategy].ranks[shards]
        for transport in TRANSPORTS
    ]


def pairs(point: Point) -> set[tuple[tuple[int, object], ...]]:
    """Return all pairs of two axes' values that a point has."""
    return set(itertools.combinations(enumerate(point.values), 2))


def pairwise(points: list[Point]) -> list[Point]:
    """Return few of the points that have every pair of values that all of them have.

    Greedy: the point with the most new pairs comes next (Cohen et al., "The AETG system", 1997).
    """
    left = set().union(*map(pairs, points))
    chosen = []
    while left:
        chosen.append(max(points, key=lambda point: len(pairs(point) & left)))
        left -= pairs(chosen[-1])
    return chosen


def train(
    points: Iterable[Point], data: Path, folder: Path
) -> Iterator[tuple[Point, dict[str, str | None]]]:
    """Train and evaluate points, as many at a time as have one number of ranks; yield their hashes.

    Args:
        points: what to train.
        data: the prepared digits, with the partition into S shards in the folder S.
        folder: an empty folder.
    """
    for ranks, group in itertools.groupby(sorted(points, key=by_ranks), by_ranks):
        named = {f"{ranks}-{number}": point for number, point in enumerate(group)}
        flags = {name: launch_flags(point, data) for name, point in named.items()}
        yield from zip(named.values(), launch(mpirun(ranks), flags, data, folder), strict=True)


def by_ranks(point: Point) -> int:
    return point.ranks


def launch_flags(point: Point, data: Path) -> list[str]:
    return [
        *point.configuration.flags,
        *("--partition", str(data / str(point.configuration.shards) / "shards.csv")),
        *("--ranks", str(point.ranks), "--oversubscribe", *TRANSPORTS[point.transport]),
        *STRATEGIES[point.configuration.strategy].flags,
    ]


def references(
    configurations: Iterable[Configuration], data: Path, folder: Path
) -> dict[Configuration, dict[str, str | None]]:
    """Train configurations in one process without MPI; return their hashes."""
    configurations = list(configurations)
    flags = {
        f"single-{number}": [
            *configuration.flags,
            *("--partition", str(data / str(configuration.shards) / "shards.csv")),
            *("--ranks", "1", *STRATEGIES[configuration.strategy].reference),
        ]
        for number, configuration in enumerate(configurations)
    }
    return dict(zip(configurations, launch([sys.executable], flags, data, folder), strict=True))


def launch(
    launcher: list[str], flags: dict[str, list[str]], data: Path, folder: Path
) -> list[dict[str, str | None]]:
    """Train with each of several lists of flags in one launch; return the hashes of each."""
    commands = folder / f"{next(iter(flags))}.json"
    commands.write_text(json.dumps(flags))
    program = [*launcher, "-m", "tests.mpi.programs.train_points", commands, data, folder]
    done = run_shared(program, REPOSITORY, timeout=3600)
    assert done.returncode == 0, done.stderr
    return [hashes(folder / name) for name in flags]


def hashes(results: Path) -> dict[str, str | None]:
    """Return the SHA-256 of each part of a result."""
    record = json.loads((results / "train.json").read_text())
    found = {part: record[key] for part, key in PARTS.items()}
    content = b"".join(
        (results / file).read_bytes() for file in ("predictions.csv", "metrics.json")
    )
    return found | {"predictions": hashlib.sha256(content).hexdigest()}


def short(parts: dict[str, str | None]) -> str:
    """Return a short hash of all parts together."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:7]


def make_table(
    found: dict[Point, dict[str, str | None]],
    expected: dict[Configuration, dict[str, str | None]],
) -> str:
    """Return the matrix as a table in Markdown: a row for each configuration."""
    launches = [(transport, ranks) for transport in TRANSPORTS for ranks in RANKS]
    head = ["S", "model", "optimizer", "augmentation", "strategy", "one process"]
    head += [f"{transport} {ranks}" for transport, ranks in launches]
    lines = [head, ["---"] * len(head)]
    for configuration, parts in expected.items():
        row = [*map(str, configuration), f"`{short(parts)}`"]
        for transport, ranks in launches:
            here = found.get(Point(configuration, ranks, transport))
            if here is None:
                row.append("")
            else:
                row.append(f"{'=' if here == parts else '**other**'} `{short(here)}`")
        lines.append(row)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def page(table: str, verdict: str, record: dict[str, Any]) -> str:
    """Return the page that the documentation has, given the train.json of a reference."""
    arithmetic = record["arithmetic"]
    return (
        "# The promise's matrix\n\n"
        "Written by `make promise`; see [the promise](promise.md).\n"
        "Each row is a configuration, trained and evaluated by one process, and then by P ranks of "
        "`mpirun` for P that divide S (a `pipeline` takes any, a `hybrid` twice those).\n"
        "A cell has the first digits of one SHA-256 over the weights, BatchNorm's statistics, the "
        "optimizer's state, the history, the snapshots and the predictions; `=` says that each of "
        "them is what one process gave.\n\n"
        f"**{verdict}.** torch {arithmetic['libraries']['torch']}, "
        f"{arithmetic['machine']} with {arithmetic['instruction_set']}, float32, "
        f"{arithmetic['threads']} thread a rank.\n\n{table}"
    )


def main() -> None:
    """Train the full matrix, print its table, and write it for the documentation."""
    started = time.monotonic()
    points = all_points() + points_of_other_strategies()
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = prepare_digits(folder, SHARDS)
        expected = references(dict.fromkeys(p.configuration for p in points), data, folder)
        say(f"{len(expected)} configurations trained by one process")
        record = json.loads((folder / "single-0" / "train.json").read_text())
        for point, parts in train(points, data, folder):
            found[point] = parts
            for part, value in expected[point.configuration].items():
                if parts[part] != value:
                    say(f"{part}: not the same at {', '.join(map(str, point.values))}")
            if len(found) % 12 == 0:
                say(f"{len(found)} of {len(points)} runs compared")
    different = sum(parts != expected[point.configuration] for point, parts in found.items())
    verdict = f"{len(found)} runs compared with {len(expected)} references, {different} differ"
    table = make_table(found, expected)
    TABLE.write_text(page(table, verdict, record))
    print(f"{table}\n{verdict}; {time.monotonic() - started:.0f} s; see {TABLE}")
    sys.exit(1 if different else 0)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
