"""How stages are started: the flags of their command lines, and the words that start ranks.

What the rules of the workflow compute is here, as plain functions of the configuration.
"""

import json
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from lockstep.errors import UserError
from lockstep.pipeline.config import UPKEEP, Config, Dataset, Run, Strict
from lockstep.pipeline.data.sources import SOURCES
from lockstep.pipeline.data.split import PARTS
from lockstep.pipeline.kinds import Kind
from lockstep.provenance import caps
from lockstep.strategies import catalogue

# Starts ranks on this machine. Cores are not bound, since two jobs of one machine would be bound to
# the same ones; the stages see to it that there are enough. Without libfabric, which one host has
# no use for, ranks start a second sooner.
LOCAL = ["mpirun", "--map-by", ":OVERSUBSCRIBE", "--bind-to", "none", "--mca", "btl", "^ofi"]

# Ranks on other hosts get the environment of this one. A host that answers no more is given up by
# ssh after 9 s, which ends mpirun with an error, and by mpirun itself and on the host that is cut
# off after 15 s, and not after eight minutes.
BETWEEN_HOSTS = [
    *("-x", "PATH", "-x", "PYTHONPATH"),
    *("--prtemca", "plm_ssh_args", "-x -o ServerAliveInterval=3 -o ServerAliveCountMax=2"),
    *("--prtemca", "oob_tcp_keepalive_time", "5", "--prtemca", "oob_tcp_keepalive_intvl", "2"),
    *("--prtemca", "oob_tcp_keepalive_probes", "5"),
]


def as_root() -> list[str]:
    """Return what mpirun wants to be told by root; in a container there is often nobody else."""
    return ["--allow-run-as-root"] if os.geteuid() == 0 else []


def mpirun(folder: Path = Path()) -> list[str]:
    """Return the launcher of local ranks, and of those on the hosts of a `hostfile` in `folder`.

    Ranks on other hosts get what decides their bits, and what a user says about the network.
    """
    network = (name for name in os.environ if name.startswith(("GLOO_", "NCCL_")))
    names = [word for name in (*caps(), *network) for word in ("-x", name)]
    hosts = ["--hostfile", "hostfile"] if (folder / "hostfile").exists() else []
    return [*LOCAL, *BETWEEN_HOSTS, *names, *hosts]


def start(launcher: Sequence[str], ranks: int, threads: int = 1, nodes: int = 1) -> list[str]:
    """Return the words that start `python` on ranks; a single rank needs no MPI.

    Args:
        launcher: `mpirun` or `srun` and their options, and what stands before or after them.
        ranks: how many there are.
        threads: the cores that srun gives to each.
        nodes: the hosts that a SLURM job has.
    """
    programs = [Path(word).name for word in launcher]
    python = ["python", "-m", "mpi4py"] if ranks > 1 else ["python"]
    if "srun" in programs:
        after = programs.index("srun") + 1
        rest = [word for word in launcher[after:] if ranks > 1 or not word.startswith("--mpi=")]
        return [*launcher[:after], *_srun_numbers(ranks, threads, nodes), *rest, *python]
    if ranks == 1:
        return python
    root = as_root() if "mpirun" in programs else []
    return [*launcher, *root, "-n", str(ranks), *python]


def run_by_hand(ranks: int, words: Sequence[str]) -> NoReturn:
    """Become mpirun, which starts a stage of this program, or a script, on ranks.

    Ranks may be more than there are cores, and the user may be root. As in a job of the workflow,
    a `hostfile` in the working directory says where they are.

    Args:
        ranks: how many.
        words: a stage and its arguments, or a script that ends in .py and its.

    Raises:
        UserError: there is no mpirun.
    """
    what = [*words] if words[0].endswith(".py") else ["-m", "lockstep", *words]
    # What an mpirun has left that was killed when it had this process id: a new one would not start
    # beside it. No other can be using it.
    left = Path(tempfile.gettempdir(), f"ompi.{os.getpid()}")
    shutil.rmtree(left, ignore_errors=True)
    command = [*start(mpirun(), ranks), *what]
    try:
        os.execvp(command[0], command)  # noqa: S606 - a list of words, which no shell reads
    except FileNotFoundError:
        raise UserError(
            f"launch: there is no {command[0]} on the PATH; activate the environment that has it "
            f"(. .venv/bin/activate)"
        ) from None


def _srun_numbers(ranks: int, threads: int, nodes: int) -> list[str]:
    """Return a launch's numbers for srun, which does not always know those that the job has."""
    count = nodes if ranks > 1 else 1
    return [
        *("--kill-on-bad-exit=1", f"--nodes={count}", f"--ntasks={ranks}"),
        *(f"--ntasks-per-node={ranks // count}", f"--cpus-per-task={threads}"),
        *([] if ranks > 1 else ["--mpi=none"]),
    ]


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


def check_flags(runs: Sequence[Run], experiment: Config, data: str) -> str:
    """Return the flags of `check` for a launch.

    Args:
        runs: those that are launched so.
        experiment: the whole configuration.
        data: the folder of the prepared dataset.
    """
    words = shlex.split(flags(runs[0], "ranks", "threads", "device"))
    words += ["--models", *sorted({run.model for run in runs})]
    words.append(f"--images={min(run.batch // run.shards for run in runs)}")
    words.append(f"--seconds={experiment.check_seconds}")
    if all(run.oversubscribe for run in runs):
        words.append("--oversubscribe")
    return shlex.join([*words, *_input_flags(experiment.dataset, data)])


def _input_flags(dataset: Dataset, data: str) -> list[str]:
    if dataset.path is not None:
        return ["--data", data]
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
