"""`lockstep launch`: start a script, or a stage of the pipeline, on several ranks.

    lockstep launch -n 4 train.py
    lockstep launch -n 4 reproduce results/mine/first

Nobody need know mpirun's flags. The workflow starts its ranks so, too.

Where ranks are on several hosts, mpirun ends when one of them is lost, and nothing can make it go
on. So it is started again, on those that are left: the run goes on from its last checkpoint.
"""

import argparse
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from lockstep.distributed import ending
from lockstep.errors import Parser, UserError, say
from lockstep.provenance import caps

# Starts ranks on this machine. Cores are not bound, since two jobs of one machine would be bound to
# the same ones; the stages see to it that there are enough. Without libfabric, which one host has
# no use for, ranks start a second sooner.
LOCAL = ["mpirun", "--map-by", ":OVERSUBSCRIBE", "--bind-to", "none", "--mca", "btl", "^ofi"]

# Has the others go on when a rank dies, and mpirun with them: when one dies that was started later,
# too, by the latter two; without them it ends with status 1 or 137 then.
SURVIVING = [
    *("--with-ft", "ulfm", "--prtemca", "state_base_recoverable", "1"),
    *("--prtemca", "state_base_notify_errors", "1"),
]

# A host that does not answer within these seconds is lost.
PATIENCE = 5

# Ranks on other hosts get the PATH of this one. A host that answers no more is given up by ssh
# after 9 s, which ends mpirun with an error, and by mpirun itself and on the host that is cut off
# after 15 s, and not after eight minutes.
SSH = f"-x -o ConnectTimeout={PATIENCE} -o ServerAliveInterval=3 -o ServerAliveCountMax=2"
BETWEEN_HOSTS = [
    *("-x", "PATH"),
    *("--prtemca", "plm_ssh_args", SSH),
    *("--prtemca", "oob_tcp_keepalive_time", "5", "--prtemca", "oob_tcp_keepalive_intvl", "2"),
    *("--prtemca", "oob_tcp_keepalive_probes", "5"),
]


def as_root() -> list[str]:
    """Return what mpirun wants to be told by root; in a container there is often nobody else."""
    return ["--allow-run-as-root"] if os.geteuid() == 0 else []


class Host(NamedTuple):
    """A host that ranks may be on."""

    name: str
    slots: int | None
    """How many it is to have; None: as many as it has cores."""


def hosts(folder: Path = Path()) -> list[Host]:
    """Return where ranks are to be: the nodes of a SLURM job, or the hosts of a `hostfile`.

    Args:
        folder: has the `hostfile`; without one, all ranks are on this host, and the list is empty.
    """
    if _nodes_of_slurm() > 1:
        show = ["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]]
        names = subprocess.run(show, capture_output=True, text=True, check=True).stdout.split()
        # "2(x3),1": three nodes with two tasks each, and one with one.
        tasks = list[int]()
        for part in os.environ["SLURM_TASKS_PER_NODE"].split(","):
            each, _, times = part.rstrip(")").partition("(x")
            tasks += [int(each)] * int(times or 1)
        return [Host(*found) for found in zip(names, tasks, strict=True)]
    found = list[Host]()
    with contextlib.suppress(FileNotFoundError):
        for line in (folder / "hostfile").read_text().splitlines():
            if words := line.partition("#")[0].split():
                slots = (word.removeprefix("slots=") for word in words if "slots=" in word)
                found.append(Host(words[0], next((int(slot) for slot in slots), None)))
    return found


def _nodes_of_slurm() -> int:
    """Return how many nodes this SLURM job has; 0: this is none."""
    return int(os.environ.get("SLURM_JOB_NUM_NODES", 0))


def mpirun(where: Sequence[Host]) -> list[str]:
    """Return the launcher of ranks on these hosts; on this one, if there are none.

    Ranks on other hosts get what decides their bits, and what a user says about the network.
    """
    network = (name for name in os.environ if name.startswith(("GLOO_", "NCCL_")))
    python = ["PYTHONPATH"] if "PYTHONPATH" in os.environ else []
    names = [word for name in (*python, *caps(), *network) for word in ("-x", name)]
    slots = ["*" if host.slots is None else host.slots for host in where]
    places = ",".join(f"{host.name}:{some}" for host, some in zip(where, slots, strict=True))
    survive = SURVIVING if _may_survive() else []
    return [*LOCAL, *survive, *BETWEEN_HOSTS, *names, *(["--host", places] if places else [])]


def _may_survive() -> bool:
    """Return whether ranks are to go on when others die: unless Open MPI is told not to, or to take
    a transport with which it crashes then (UCX)."""
    told = os.environ.get("OMPI_MCA_mpi_ft_enable", "1")  # noqa: SIM112 - its name is that
    transport = os.environ.get("OMPI_MCA_pml", "ob1")  # noqa: SIM112
    return told == "1" and transport == "ob1"


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
    # Where the others do not end with a rank, MPI comes first: until then they miss none.
    runner = "lockstep.mpi" if "--with-ft" in launcher else "mpi4py"
    words = [python, "-m", runner] if ranks > 1 else [python]
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


def make_parser(_: str) -> Parser:
    """Return the command's parser."""
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
    return parser


def main(word: str, argv: Sequence[str]) -> NoReturn:
    """Do what the command line says."""
    parser = make_parser(word)
    given = parser.parse_args(argv)
    # A later -- is of the program that the ranks run.
    words = given.words[1:] if given.words[:1] == ["--"] else given.words
    if given.ranks < 1:
        parser.error("-n: expected a number from 1")
    if not words:
        parser.error("say what the ranks are to run: lockstep launch -n 2 train.py")
    launch(given.ranks, words)


def launch(ranks: int, words: Sequence[str]) -> NoReturn:
    """Have mpirun start a script, or a stage of this program, on ranks, and end as it does.

    Ranks may be more than there are cores, and the user may be root. Where they are on several
    hosts and one of those is lost, the others start again, with as many ranks as they have slots
    for. What has come to its end already is then a matter of seconds.

    Args:
        ranks: how many.
        words: a script that ends in .py and its arguments, or a stage and its.

    Raises:
        UserError: there is no mpirun, or no such script.
    """
    stage = not words[0].endswith(".py")
    if not stage and not Path(words[0]).is_file():
        raise UserError(f"{words[0]}: no such file; expected a script, or a stage such as train")
    what = ["-m", "lockstep", *words] if stage else [*words]
    where = hosts()
    # To SLURM, the step that has lost a node goes on for a while, and holds the cores of all.
    os.environ["SLURM_OVERLAP"] = "1"
    while True:
        command = [*start(mpirun(where), ranks, python=sys.executable), *what]
        command[0] = _found(command[0])
        if len(where) < 2:
            _sweep()
            os.execv(command[0], command)  # noqa: S606 - a list of words, which no shell reads
        status = _supervise(command)
        # A mistake is one on any host, and who was told to stop has saved. Nothing else says what
        # happened: mpirun that loses a host may end with status 0.
        left = where if status in (2, 75) else _that_answer(where)
        if left in (where, []):
            sys.exit(status)
        lost = ", ".join(host.name for host in where if host not in left)
        slots = sum(host.slots or os.cpu_count() or 1 for host in left)
        if slots < ranks:
            ranks = slots
            if stage and any(word.partition("=")[0] == "--ranks" for word in words):
                what += [f"--ranks={ranks}"]  # the last one counts
        where = left
        say(
            f"lockstep launch: {lost} does not answer; {ranks} ranks go on from the last "
            f"checkpoint, on {', '.join(host.name for host in where)}"
        )


def _found(program: str) -> str:
    """Return where mpirun is: maybe beside this Python, in an environment nobody has activated."""
    places = os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)])
    if (path := shutil.which(program, path=places)) is None:
        raise UserError(f"there is no {program}; pip install 'lockstep[mpi]'")
    return path


def _sweep() -> None:
    """Remove what an mpirun has left that was killed when it had this process id.

    A new one would not start beside it. No other can be using it.
    """
    left = Path(tempfile.gettempdir(), f"ompi.{os.getpid()}")
    shutil.rmtree(left, ignore_errors=True)


def _supervise(command: Sequence[str]) -> int:
    """Run mpirun, hand on the signals that this process gets, and return its status.

    It is in a process group of its own, or it would get what is sent to this one's twice. If it was
    told to end, so does this process.
    """

    def begin() -> None:
        _sweep()
        ending.set_death_signal(signal.SIGKILL)

    told = list[int]()

    def hand_on(number: int, _: Any) -> None:
        told.append(number)
        process.send_signal(number)

    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0, preexec_fn=begin)
    stops = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    before = {
        some: signal.signal(some, hand_on) for some in {*stops, signal.SIGUSR1, signal.SIGUSR2}
    }
    status = process.wait()
    for some, handler in before.items():
        signal.signal(some, handler)
    if status < 0:  # as shells have it
        status = 128 - status
    if stops & {*told}:
        sys.exit(status)
    return status


def _that_answer(where: Sequence[Host]) -> list[Host]:
    """Return those of the hosts on which something can be started."""
    with ThreadPoolExecutor(len(where)) as pool:
        found = pool.map(_answers, (host.name for host in where))
        return [host for host, answers in zip(where, found, strict=True) if answers]


def _answers(host: str) -> bool:
    if _nodes_of_slurm() > 1:
        words = ["srun", "--nodes=1", "--ntasks=1", "--mpi=none"]
        words += [f"--nodelist={host}"]
    elif _is_here(host):  # which mpirun starts nothing on by ssh, so that there may be no sshd
        return True
    else:
        words = ["ssh", *SSH.split(), "-o", "BatchMode=yes", host]
    try:
        null = subprocess.DEVNULL
        done = subprocess.run(
            [*words, "true"], stdin=null, stdout=null, stderr=null, timeout=PATIENCE, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def _is_here(host: str) -> bool:
    """Return whether a host is this one: nobody can listen at another's address."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
            listener.bind((host, 0))
    except OSError:
        return False
    return True
