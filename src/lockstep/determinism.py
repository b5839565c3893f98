"""What of the machine changes the bits of a result: set it, and write it down."""

import contextlib
import platform
import random as python_random
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from lockstep import provenance
from lockstep import random as streams
from lockstep.errors import UserError
from lockstep.testing import faults
from lockstep.torch_private import set_deterministic


def pin(threads: int, device: torch.device, reproducible: bool) -> Callable[[], None]:
    """Set the number of threads, and arithmetic that gives the same bits each time.

    Args:
        threads: of this rank. Sums inside a kernel are split among them.
        device: where to compute.
        reproducible: refuse kernels that give other bits from one call to the next.

    Returns:
        What sets all of it back.

    Raises:
        UserError: torch has started its threads already, which go on as they were.
    """
    count, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    denormal = torch.tensor(1e-40).mul(0.5).item() != 0.0
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    benchmark = torch.backends.cudnn.benchmark

    def undo() -> None:
        torch.set_num_threads(count)
        torch.set_flush_denormal(not denormal)
        set_deterministic(strict, warn_only=warns)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = benchmark

    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)  # CPUs are far slower with denormal numbers
    if device.type == "cpu" and threads > 1 and not _all_flush(threads):
        undo()
        raise UserError(
            f"threads: torch has started threads before, which compute with denormal numbers, so "
            f"that the bits would be others than in a process that has not; begin with "
            f"lockstep.init, before anything is computed, or take 1 thread, not {threads}"
        )
    if reproducible:
        set_deterministic(True)
        # It would also fill new memory, lest somebody read it before writing. Nothing here does:
        # the tests fill it.
        torch.utils.deterministic.fill_uninitialized_memory = faults.POISON  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = False  # it would choose kernels by their speed that day
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return undo


def _all_flush(threads: int) -> bool:
    """Return whether all threads take denormal numbers as zero: it is inherited at their start."""
    large = torch.full((threads * 2**16,), 2e-38)  # each of them has a part of it
    return not (large - 1.999e-38).view(torch.int32).any()


def draw_for(device: torch.device, purpose: str, *place: int) -> None:
    """Have what is drawn by torch from here on be a function of a purpose and a place."""
    seed = streams.torch_seed(purpose, *place)
    # Not by torch.manual_seed: where no GPU is in use, that keeps a stack trace of every call.
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


@contextlib.contextmanager
def seeded(purpose: str, *place: int) -> Iterator[None]:
    """Have torch, Python and NumPy draw from a purpose and a place, and then as before."""
    drawn = streams.torch_seed(purpose, *place)
    before = python_random.getstate(), np.random.get_state(), torch.get_rng_state()
    torch.manual_seed(drawn)
    python_random.seed(drawn)
    np.random.seed(drawn % 2**32)
    try:
        yield
    finally:
        python_random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def arithmetic() -> dict[str, Any]:
    """Describe what decides which kernels run, and how they add up: call it after `pin`."""
    return {
        "machine": platform.machine(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "caps": provenance.caps(),
        "threads": torch.get_num_threads(),
        "flush_denormal": not torch.tensor(1e-40).mul(0.5).item(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "float32": torch.get_float32_matmul_precision(),
        "libraries": libraries(),
    }


def software() -> dict[str, Any]:
    """Describe what of the software all ranks must have alike, for the same bits."""
    versions = provenance.versions()
    named = {name: versions.get(name) for name in provenance.LIBRARIES}
    return {"libraries": {**named, **libraries()}, "caps": provenance.caps()}


def libraries() -> dict[str, str]:
    """Return the versions of what torch was built with: one release has several builds."""
    text = torch.__config__.show()
    found = {"torch": torch.__version__, "torch_commit": torch.version.git_version}
    for name, pattern in (
        ("onednn", r"MKL-DNN v(\S+)"),
        ("mkl", r"Math Kernel Library Version (\S+)"),
    ):
        if match := re.search(pattern, text):
            found[name] = match[1]
    if torch.version.cuda:
        found |= {"cuda": torch.version.cuda, "cudnn": str(torch.backends.cudnn.version())}
    return found
