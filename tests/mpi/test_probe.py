"""The probe of communication, in real ranks."""

import re
import socket

import pytest

from tests.conftest import REPOSITORY, mpirun
from tests.crew import run_shared

pytestmark = pytest.mark.thorough

PROGRAM = REPOSITORY / "tests" / "mpi" / "programs" / "probe.py"


@pytest.mark.parametrize("ranks", [1, 3, 4])  # `check` runs it on 2
def test_every_operation_is_right_at_any_number_of_ranks(ranks, tmp_path):
    done = run_shared([*mpirun(ranks), PROGRAM, ranks], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "all results are right" in done.stdout


@pytest.mark.parametrize(
    ("call", "operation"),
    [("ALLREDUCE", "all_reduce"), ("ALLTOALL_BASE", "all_to_all"), ("SEND", "send_recv")],
)
def test_a_wrong_value_is_found(call, operation, tmp_path):
    done = run_shared([*mpirun(3), PROGRAM, 3, call, operation], tmp_path, timeout=60)
    assert done.returncode != 0
    assert "all results are right" not in done.stdout
    # 4096, or the next number of bytes that three ranks share evenly
    where = rf"{operation} over gloo at 4(096|104) bytes on rank \d \({socket.gethostname()}\)"
    assert re.search(f"UserError: backend: {where} gave wrong values in 1 of ", done.stderr)
