"""PyTorch's own tests of torch.distributed over the backend; `make torch-suite` compares Gloo."""

from collections import Counter

import pytest

from tests.mpi.torch_suite import EXPLAINED, names_of_all, run_suite

pytestmark = pytest.mark.thorough


def test_torchs_own_tests_pass():
    names = [name for name in names_of_all() if name not in EXPLAINED]
    outcomes = run_suite("mpi4py", 3, names)
    assert {name: why for name, (what, why) in outcomes.items() if what == "failed"} == {}
    assert Counter(what for what, _ in outcomes.values())["passed"] >= 110
