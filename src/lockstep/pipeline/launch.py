"""What stages are started with: the flags of their command lines, and what a scheduler is told.

What the rules of the workflow compute is here, as plain functions of the configuration.
"""

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lockstep.distributed import launcher
from lockstep.errors import UserError
from lockstep.pipeline.config import UPKEEP, Config, Dataset, Run, Strict
from lockstep.pipeline.data.sources import SOURCES
from lockstep.pipeline.data.split import PARTS
from lockstep.pipeline.kinds import Kind
from lockstep.strategies import catalogue

# What starts ranks where a profile names nothing else: on this host, or on those of a hostfile.
OURS = ["lockstep", "launch"]


def start(words: Sequence[str], ranks: int, threads: int, nodes: int) -> list[str]:
    """Return the words that start a stage on ranks; it follows them.

    Args:
        words: what starts ranks: `lockstep launch`, or another launcher and its options.
        ranks: how many there are.
        threads: the cores that srun gives to each.
        nodes: the hosts that a SLURM job has.
    """
    if words == OURS and ranks > 1:
        return [*OURS, "-n", str(ranks)]
    return [*launcher.start(words, ranks, threads, nodes), "-m", "lockstep"]


def tasks_per_node(ranks: int, nodes: int) -> int:
    """Return how many ranks a node of SLURM's gets, or it may put four on two nodes as 3 and 1.

    Its plugin for Snakemake wants more than one here; 0 says nothing.
    """
    each = ranks // nodes
    return each if each > 1 else 0


def tasks(ranks: int, nodes: int) -> int | str:
    """Return how many ranks SLURM is to start where it is not told how many a node gets.

    Its plugin for Snakemake takes a single one as text alone; 0 says nothing.
    """
    return 0 if tasks_per_node(ranks, nodes) else str(ranks)


def check_nodes(runs: Mapping[str, Run], nodes: int) -> None:
    """Refuse a number of hosts that the ranks of some run, if there are several, cannot share.

    Raises:
        UserError: they cannot.
    """
    for name, run in runs.items():
        if run.ranks > 1 and run.ranks % nodes:
            raise UserError(
                f"nodes: the profile asks for {nodes}, and the {run.ranks} ranks of the run {name} "
                f"cannot share them evenly; take a number that divides the ranks of every run"
            )


def flags(section: Strict, *names: str) -> str:
    """Return the flags of the command line for fields of a section of the configuration.

    Args:
        section: the section.
        names: the fields; all of them, if none is named.
    """
    words = []
    for name in names or type(section).model_fields:
        value, flag = getattr(section, name), f"--{name.replace('_', '-')}"
        if name == "alpha" and getattr(section, "scheme", "") != "dirichlet":
            continue  # no other scheme reads it, so it must not have anything made again
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        elif value is not None:
            words.append(f"{flag}={value}")  # in one word: a value may begin with a hyphen
    return shlex.join(words)


def arrays(kind: Kind) -> list[str]:
    """Return the files of arrays that `prepare` leaves, in the folder of the dataset."""
    return [f"{part}/{array.name}.npy" for part in PARTS for array in kind.arrays]


def flags_of_data(dataset: Dataset) -> str:
    """Return the flags of `prepare`."""
    return flags(dataset, *(name for name in type(dataset).model_fields if name != "mirror"))


def train_flags(run: Run) -> str:
    """Return the flags of `train`, without those that change nothing of a result."""
    return flags(run, *(name for name in type(run).model_fields if name not in UPKEEP))


def weights(run: Run) -> list[str]:
    """Return the file of the weights that a run begins with, if it begins with any."""
    return [] if run.weights_file is None else [str(run.weights_file)]


def upkeep_flags(run: Run) -> str:
    """Return the flags of `train` that change nothing of a result."""
    return flags(run, *sorted(UPKEEP))


def world(run: Run) -> str:
    """Return the name of the launch that a run needs: runs that launch alike are checked once."""
    return f"{run.ranks}x{run.threads}-{run.device}"


def worlds(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Return the launches that runs need by name, and the runs that each of them stands for."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(world(run), []).append(run)
    return found


def predicted(runs: Mapping[str, Run]) -> list[str]:
    """Return the names of the runs whose time on more ranks can be predicted.

    One rank has no communication that could be measured.
    """
    return [name for name, run in runs.items() if run.ranks > 1 and catalogue.of(run).one_sum]


def check_flags(runs: Sequence[Run], experiment: Config) -> str:
    """Return the flags of `check` for a launch, without the folder of a dataset of the user's.

    Args:
        runs: those that are launched so.
        experiment: the whole configuration.
    """
    words = shlex.split(flags(runs[0], "ranks", "threads", "device"))
    words += ["--models", *sorted({run.model for run in runs})]
    words.append(f"--images={min(run.batch // run.shards for run in runs)}")
    words.append(f"--seconds={experiment.check_seconds}")
    if all(run.oversubscribe for run in runs):
        words.append("--oversubscribe")
    return shlex.join([*words, *_input_flags(experiment.dataset)])


def _input_flags(dataset: Dataset) -> list[str]:
    if dataset.path is not None:
        return []
    source = SOURCES[dataset.name]
    return ["--shape", *map(str, source.shape), "--classes", str(len(source.classes))]


def resolved(config: Mapping[str, Any], folders: Mapping[str, str]) -> str:
    """Return a whole configuration as JSON, with the folders that it has written out.

    What changes nothing of a result is left out.
    """
    whole = {**config, "pathvars": dict(folders)}
    for section, unrecorded in (("dataset", {"mirror"}), ("defaults", UPKEEP)):
        values = config.get(section, {}).items()
        whole[section] = {key: value for key, value in values if key not in unrecorded}
    return json.dumps(whole, indent=2, sort_keys=True)
