"""Processes that stay: they run one program after another, and import torch only once.

That takes 4 s of a core in each rank, and most of what the tests have ranks do takes less. A test
that is about how ranks are started, or end, or what they are started with, starts its own by `run`.
"""

import atexit
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection, wait
from pathlib import Path

from tests.conftest import REPOSITORY, environment, mpirun

PROGRAM = REPOSITORY / "tests" / "mpi" / "programs" / "stay.py"

# Imported before the first program. The last but one comes with the first step of an optimizer.
MODULES = {
    "python": [
        "lockstep.pipeline.stages.train",
        "lockstep.pipeline.stages.evaluate",
        "torch._dynamo",
        "pandas",
    ],
    "snakemake": ["snakemake.cli", "pydantic"],  # a workspace has its own lockstep
}

# Processes that stay at most, of some 400 MB each; those that were used last.
MOST = 9

# Seconds in which ranks end when one of them has failed: else they wait for it in vain.
SOON = 10.0


class Crew:
    """Processes that were started together; `run` has all of them run a program."""

    def __init__(self, launcher: list[str], size: int, how: str, modules: list[str]) -> None:
        self.size, self.environment = size, environment()
        self.folder = tempfile.TemporaryDirectory(prefix="crew-")
        address, log = (Path(self.folder.name, name) for name in ("socket", "log"))
        with socket.socket(socket.AF_UNIX) as listener, log.open("w") as said:
            listener.bind(str(address))
            listener.listen(size)
            listener.settimeout(1)
            self.process = subprocess.Popen(
                [*launcher, str(PROGRAM), str(address), how, *modules],
                cwd=REPOSITORY,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
            connections: list[Connection] = []
            while len(connections) < size:
                with contextlib.suppress(TimeoutError):
                    connections.append(Connection(listener.accept()[0].detach()))
                assert self.process.poll() is None, log.read_text()
        self.ranks: dict[int, Connection] = {one.recv(): one for one in connections}

    def run(
        self, words: list[str], cwd: Path, timeout: float, variables: dict[str, str]
    ) -> subprocess.CompletedProcess[str]:
        """Run what would follow `python`; what the ranks print is there one after the other."""
        new = {k: v for k, v in environment().items() if self.environment.get(k) != v} | variables
        files = [[f"{self.folder.name}/{r}.{kind}" for kind in ("out", "err")] for r in self.ranks]
        for connection, paths in zip(self.ranks.values(), files, strict=True):
            connection.send((words, str(cwd), new, *paths))
        statuses = self._statuses(timeout)
        out, err = ("".join(map(_text, paths)) for paths in zip(*files, strict=True))
        if late := self.ranks.keys() - statuses.keys():
            self.close()
            err += f"\nranks that did not end: {sorted(late)}"
        status = max(statuses.values(), key=abs, default=1) or int(bool(late))
        return subprocess.CompletedProcess(words, status, out, err)

    def _statuses(self, timeout: float) -> dict[int, int]:
        """Return the status of each rank that has ended; a rank that is gone has none."""
        found: dict[int, int] = {}
        waiting, deadline = dict(self.ranks), time.monotonic() + timeout
        while waiting and (left := deadline - time.monotonic()) > 0:
            ready = wait(waiting.values(), left)
            for rank in [rank for rank, one in waiting.items() if one in ready]:
                with contextlib.suppress(EOFError, ConnectionError):
                    found[rank] = waiting[rank].recv()
                if found.get(rank, 1):
                    deadline = min(deadline, time.monotonic() + SOON)
                del waiting[rank]
        return found

    def close(self) -> None:
        """Let the processes end, or have them end."""
        for connection in self.ranks.values():
            connection.close()
        try:
            self.process.wait(SOON)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)  # and a fork that hangs
            self.process.wait()
        self.folder.cleanup()
        for key in [key for key, crew in _crews.items() if crew is self]:
            del _crews[key]


_crews: dict[tuple[str, ...], Crew] = {}


def _text(path: str) -> str:
    return Path(path).read_text() if Path(path).exists() else ""


def run_shared(
    words: list[object], cwd: Path, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run a command as `run` does, but by processes that stay.

    Args:
        words: what `python` does (`-m` and a module, or a program, and its arguments), behind the
            words that start it: those of `mpirun(ranks)`, or `sys.executable`; and before these
            `env` and variables, if there are any. Those of MPI are for the launch.
        cwd: the folder to run it in.
        timeout: the seconds that it may last.
    """
    command = [str(word) for word in words]
    variables = {}
    if command[0] == "env":
        del command[0]
        while "=" in command[0]:
            name, _, variables[name] = command.pop(0).partition("=")
    ranks = int(command[command.index("-n") + 1]) if command[0] == "mpirun" else 1
    launcher = mpirun(ranks) if command[0] == "mpirun" else [sys.executable]
    assert command[: len(launcher)] == launcher, command
    what = "snakemake" if command[len(launcher) :][:2] == ["-m", "snakemake"] else "python"
    mpi = [f"{name}={variables.pop(name)}" for name in list(variables) if name.startswith("OMPI_")]
    key = (what, *mpi, *launcher)
    if key in _crews:
        _crews[key] = _crews.pop(key)  # the last one now
    else:
        while _crews and ranks + sum(crew.size for crew in _crews.values()) > MOST:
            next(iter(_crews.values())).close()
        one_thread = ["OMP_NUM_THREADS=1"] if what == "python" else []
        _crews[key] = Crew(
            ["env", *one_thread, *mpi, *launcher],
            ranks,
            "here" if launcher[0] == "mpirun" else "fork",
            MODULES[what],
        )
    return _crews[key].run(command[len(launcher) :], cwd, timeout, variables)


@atexit.register
def close_all() -> None:
    """Let all processes end that have stayed."""
    for one in list(_crews.values()):
        one.close()
