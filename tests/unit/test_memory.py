"""memory: what a step frees is there for the next one, without a page that the system clears."""

import subprocess
import sys

import pytest

# Blocks of 20 MiB, four at a time, ten times over: how many pages the system has to clear.
FAULTS = """
import ctypes, resource, sys
from lockstep import memory
if sys.argv[1] == "kept":
    memory.keep_freed()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
size = 20 * 2**20
def step():
    blocks = [libc.malloc(size) for _ in range(4)]
    for block in blocks:
        ctypes.memset(block, 1, size)
    for block in blocks:
        libc.free(block)
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")
def test_memory_that_was_freed_costs_no_page_again():
    faults = {
        how: int(subprocess.check_output([sys.executable, "-c", FAULTS, how]))
        for how in ("given back", "kept")
    }
    assert faults["kept"] < 100 < faults["given back"]
