"""A program for any number of ranks: PyTorch's own tests of torch.distributed, run by MPI's ranks.

The tests come with torch, as the base class of torch's test_distributed_spawn.py, which starts a
process for each rank; here the ranks are there already, and call what those processes would call.

Usage: torch_suite.py BACKEND RESULTS TEST...
       torch_suite.py --list

Appends a line of JSON to RESULTS for each test: its name, its outcome (passed, skipped, failed) and
why. The first failure ends all ranks, as they may no longer be in step.
"""

import importlib
import json
import os
import sys
import tempfile
import traceback
import unittest.mock
from multiprocessing import Pipe
from pathlib import Path
from types import ModuleType

import torch.distributed as dist
from mpi4py import MPI
from torch.testing._internal import common_distributed

TESTS = "torch.testing._internal.distributed.distributed_test"
FAILED = common_distributed.MultiProcessTestCase.TEST_ERROR_EXIT_CODE
SKIPPED = {skip.exit_code: skip.message for skip in common_distributed.TEST_SKIPS.values()}


def load(disguise: str) -> ModuleType:
    """Import torch's tests as they are for one of the backends that they know by name.

    Their decorators skip by the backend's name when the module is imported.
    """
    os.environ["BACKEND"] = disguise
    sys.modules.pop(TESTS, None)
    return importlib.import_module(TESTS)


def suite(backend: str, ranks: int) -> tuple[type, ModuleType]:
    """Return the tests that Gloo takes, and those that torch has for MPI alone."""
    os.environ |= {"WORLD_SIZE": str(ranks), "INIT_METHOD": "file://", "CUDA_VISIBLE_DEVICES": ""}
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    if ranks > 2:
        # Tests of the group [1, 2], which torch runs for 8 ranks or for MPI.
        common_distributed.skip_if_small_worldsize = lambda test: test
    mpi, gloo = load("mpi"), load("gloo")
    mpi_base = mpi.DistributedTest._DistTestBase

    class Suite(gloo.TestDistBackend, gloo.DistributedTest._DistTestBase):  # type: ignore[misc]
        pass

    # These make their model for the backends that they know.
    for name in ("_test_ddp_hook_parity", "_test_accumulate_gradients_no_sync"):
        disguised = unittest.mock.patch.object(gloo, "BACKEND", "gloo")(getattr(Suite, name))
        setattr(Suite, name, disguised)
    for name in filter(lambda name: name.startswith("test_"), dir(mpi_base)):
        if reason(getattr(Suite, name)) and not reason(getattr(mpi_base, name)):
            setattr(Suite, name, getattr(mpi_base, name))
    os.environ["BACKEND"] = gloo.BACKEND = mpi.BACKEND = backend
    return Suite, gloo


def reason(test: object) -> str:
    """Return why a decorator skips a test, or nothing."""
    skipped = getattr(test, "__unittest_skip__", False)
    return getattr(test, "__unittest_skip_why__", "") if skipped else ""


def outcome(tests: type, name: str, rank: int, meeting: str) -> tuple[str, str]:
    """Run a test on this rank; return passed, skipped or failed, and why."""
    if why := reason(getattr(tests, name)):
        return "skipped", why
    ours, its = Pipe()
    try:
        tests._run(rank, name, meeting, its)  # type: ignore[attr-defined]
    except SystemExit as end:
        if end.code == FAILED:
            return "failed", ours.recv()
        if end.code in SKIPPED:
            if dist.is_initialized():
                dist.destroy_process_group()
            return "skipped", SKIPPED[end.code]
        return ("passed", "") if end.code == 0 else ("failed", f"left with status {end.code}")
    except Exception:  # in what comes before or after the test
        return "failed", traceback.format_exc()
    finally:
        ours.close()
    raise AssertionError("unreachable: a rank's run ends in an exit")


def main(backend: str, results: str, names: list[str]) -> None:
    world = MPI.COMM_WORLD
    tests, module = suite(backend, world.size)
    if world.rank == 0:
        common_distributed.initialize_temp_directories()
    os.environ["TEMP_DIR"] = world.bcast(os.environ.get("TEMP_DIR"))
    os.environ["INIT_METHOD"] = module.INIT_METHOD = f"file://{os.environ['TEMP_DIR']}/again"
    for name in names:
        world.Barrier()  # all have left the last test
        module.Barrier.barrier_id = 0
        meeting = None
        if world.rank == 0:
            module.Barrier.init()
            meeting = tempfile.mkstemp(dir=os.environ["TEMP_DIR"])[1]
        status, why = outcome(tests, name, world.rank, world.bcast(meeting))
        if world.rank == 0 or status == "failed":
            with Path(results).open("a") as file:
                file.write(json.dumps({"test": name, "outcome": status, "why": why}) + "\n")
        if status == "failed":
            world.Abort(1)


if __name__ == "__main__":
    if sys.argv[1] == "--list":
        print(*(name for name in dir(suite("gloo", 1)[0]) if name.startswith("test_")))
    else:
        main(sys.argv[1], sys.argv[2], sys.argv[3:])
