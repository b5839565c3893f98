"""A program whose processes stay, and run one program after another as `python` would.

Usage: stay.py ADDRESS fork|here MODULE...

Importing torch takes longer than most of what the tests have processes do. The modules are imported
first. Then jobs come by the socket at the address. A process that MPI started runs them itself,
`here`: MPI lets no rank begin twice. Else each is run by a `fork`, which inherits the modules, and
leaves nothing behind. tests/crew.py is the other end.
"""

import gc
import importlib
import os
import runpy
import sys
import traceback
import unittest.mock
from collections.abc import Callable
from multiprocessing.connection import Client
from pathlib import Path

Job = tuple[list[str], str, dict[str, str], str, str]
"""What follows `python` on the command line, the folder, what the environment has besides, and the
files for what is printed: stdout and stderr."""


def do(job: Job) -> int:
    """Run a program in this process; return the status that a process would have ended with."""
    words, folder, environment, out, err = job
    before = dict(os.environ), Path.cwd(), sys.argv, list(sys.path)
    os.environ.update(environment)
    os.chdir(folder)
    if faults := sys.modules.get("lockstep.testing.faults"):
        faults.WANTED = environment.get("LOCKSTEP_FAULT", "")
    kept = [os.dup(fd) for fd in (1, 2)]
    for fd, path in ((1, out), (2, err)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, fd)
        os.close(file)
    try:
        return status_of(lambda: run(words))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for fd, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, fd)
            os.close(copy)
        os.environ.clear()
        os.environ.update(before[0])
        os.chdir(before[1])
        sys.argv, sys.path[:] = before[2:]


def run(words: list[str]) -> None:
    if words[0] == "-m":
        sys.argv, sys.path[0] = words[1:], os.getcwd()  # noqa: PTH109
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = words, str(Path(words[0]).parent)
        runpy.run_path(words[0], run_name="__main__")


def status_of(program: Callable[[], None]) -> int:
    try:
        program()
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def do_here(job: Job) -> int:
    """Run a program, and leave everything as a new process finds it."""
    import torch
    import torch.distributed as dist

    from lockstep.distributed import ending
    from lockstep.testing import faults

    faults.POISON = True  # what is read before it was written shows
    # It would end all ranks.
    with unittest.mock.patch.object(ending, "leave", lambda status, **_: sys.exit(status)):
        status = do(job)
    if dist.is_initialized():  # by a program that was refused, or failed
        dist.destroy_process_group()
    torch.use_deterministic_algorithms(False)
    gc.collect()
    return status


def do_by_a_fork(job: Job) -> int:
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = do(job)
    # As an interpreter ends: what was registered by `atexit` is done, and threads are waited for.
    sys.exit(status)


def main(address: str, how: str, *modules: str) -> None:
    for module in modules:
        importlib.import_module(module)
    connection = Client(address, "AF_UNIX")
    connection.send(int(os.environ.get("OMPI_COMM_WORLD_RANK", "0")))
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        connection.send(do_here(job) if how == "here" else do_by_a_fork(job))


if __name__ == "__main__":
    main(*sys.argv[1:])
