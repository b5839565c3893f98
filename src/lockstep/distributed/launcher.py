"""`lockstep launch`: start a script, or a stage of the pipeline, on several ranks.

    lockstep launch -n 4 train.py
    lockstep launch -n 4 reproduce results/mine/first

Nobody need know mpirun's flags. The workflow starts its ranks with the same words.
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from lockstep.errors import Parser, UserError
from lockstep.provenance import caps

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


def start(
    launcher: Sequence[str], ranks: int, threads: int = 1, nodes: int = 1, python: str = "python"
) -> list[str]:
    """Return the words that start Python on ranks; a single rank needs no MPI.

    Args:
        launcher: `mpirun` or `srun` and their options, and what stands before or after them.
        ranks: how many there are.
        threads: the cores that srun gives to each.
        nodes: the hosts that a SLURM job has.
        python: the interpreter.
    """
    programs = [Path(word).name for word in launcher]
    words = [python, "-m", "mpi4py"] if ranks > 1 else [python]
    if "srun" in programs:
        after = programs.index("srun") + 1
        rest = [word for word in launcher[after:] if ranks > 1 or not word.startswith("--mpi=")]
        return [*launcher[:after], *_srun_numbers(ranks, threads, nodes), *rest, *words]
    if ranks == 1:
        return words
    root = as_root() if "mpirun" in programs else []
    return [*launcher, *root, "-n", str(ranks), *words]


def _srun_numbers(ranks: int, threads: int, nodes: int) -> list[str]:
    """Return a launch's numbers for srun, which does not always know those that the job has."""
    count = nodes if ranks > 1 else 1
    return [
        *("--kill-on-bad-exit=1", f"--nodes={count}", f"--ntasks={ranks}"),
        *(f"--ntasks-per-node={ranks // count}", f"--cpus-per-task={threads}"),
        *([] if ranks > 1 else ["--mpi=none"]),
    ]


def main(_: str, argv: Sequence[str]) -> NoReturn:
    """Do what the command line says: become mpirun."""
    parser = Parser(
        prog="lockstep launch",
        description="Start a script, or a stage of the pipeline, on several ranks.",
    )
    parser.add_argument("-n", dest="ranks", type=int, required=True, help="how many ranks")
    parser.add_argument(
        "words",
        nargs=argparse.REMAINDER,
        help="what they run: `train.py …`, or a stage: `reproduce results/C/R`",
    )
    given = parser.parse_args(argv)
    # A later -- is of the program that the ranks run.
    words = given.words[1:] if given.words[:1] == ["--"] else given.words
    if given.ranks < 1:
        parser.error("-n: expected a number from 1")
    if not words:
        parser.error("say what the ranks are to run: lockstep launch -n 2 train.py")
    launch(given.ranks, words)


def launch(ranks: int, words: Sequence[str]) -> NoReturn:
    """Become mpirun, which starts a script, or a stage of this program, on ranks.

    Ranks may be more than there are cores, and the user may be root. As in a job of the workflow,
    a `hostfile` in the working directory says where they are.

    Args:
        ranks: how many.
        words: a script that ends in .py and its arguments, or a stage and its.

    Raises:
        UserError: there is no mpirun.
    """
    what = [*words] if words[0].endswith(".py") else ["-m", "lockstep", *words]
    # What an mpirun has left that was killed when it had this process id: a new one would not start
    # beside it. No other can be using it.
    left = Path(tempfile.gettempdir(), f"ompi.{os.getpid()}")
    shutil.rmtree(left, ignore_errors=True)
    command = [*start(mpirun(), ranks, python=sys.executable), *what]
    # mpirun may lie beside this Python, in an environment that nobody has activated.
    places = os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)])
    if (program := shutil.which(command[0], path=places)) is None:
        raise UserError(f"there is no {command[0]}; pip install 'lockstep[mpi]'")
    os.execv(program, command)  # noqa: S606 - a list of words, which no shell reads
