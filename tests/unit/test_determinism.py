"""determinism: what decides the bits is set, and is written down as it is."""

import json
import os
import subprocess
import sys

import pytest

from lockstep.distributed import devices
from lockstep.provenance import CAPS

PLACE = {"processor": "A", "instruction_set": "AVX2", "caps": {}, "device": "cpu", "host": "one"}


def arithmetic(repository, statements, **variables):
    """Return what `arithmetic` says in a fresh process, after some statements."""
    program = f"import json, torch; from lockstep import determinism; {statements}"
    program += "; print(json.dumps(determinism.arithmetic()))"
    environment = {name: value for name, value in os.environ.items() if name not in CAPS}
    environment |= {"PYTHONPATH": str(repository / "src"), **variables}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


@pytest.mark.slow
def test_what_is_pinned_is_found_to_be_so(repository):
    pin = "determinism.pin(3, torch.device('cpu'), reproducible={})"
    found = arithmetic(repository, pin.format(True), OMP_NUM_THREADS="2", MKL_NUM_THREADS="2")
    assert (found["threads"], found["flush_denormal"], found["deterministic"]) == (3, True, True)
    assert not arithmetic(repository, pin.format(False))["deterministic"]
    assert not arithmetic(repository, "pass")["flush_denormal"]


@pytest.mark.slow
def test_threads_that_were_started_before_are_refused(repository):
    pin = "determinism.pin(2, torch.device('cpu'), True)"
    assert arithmetic(repository, pin)["flush_denormal"]
    before = "torch.set_num_threads(2); torch.ones(2_000_000).add_(1); "
    with pytest.raises(subprocess.CalledProcessError) as error:
        arithmetic(repository, before + pin)
    assert "UserError: threads: torch has started threads before" in error.value.stderr


@pytest.mark.thorough
def test_caps_of_the_environment_are_recorded_and_seen(repository):
    cap = {"ATEN_CPU_CAPABILITY": "default"}
    found = arithmetic(repository, "pass", **cap)
    assert (found["caps"], found["instruction_set"]) == (cap, "DEFAULT")
    assert arithmetic(repository, "pass")["caps"] == {}


@pytest.mark.slow
def test_the_builds_of_libraries_are_recorded(repository):
    found = arithmetic(repository, "pass")["libraries"]
    assert {"torch", "torch_commit", "onednn"} <= found.keys()
    assert found["onednn"][0].isdigit()


def test_ranks_that_are_alike_need_no_line():
    assert devices.unlike([PLACE, PLACE | {"host": "two"}]) == ""


@pytest.mark.parametrize(
    "change",
    [{"processor": "B"}, {"instruction_set": "AVX512"}, {"caps": {"X": "1"}}, {"device": "H100"}],
)
def test_ranks_that_are_unlike_are_told_apart(change):
    line = devices.unlike([PLACE, PLACE, PLACE | change])
    assert line.count("; ") == 1
    assert "A, AVX2, cpu" in line
