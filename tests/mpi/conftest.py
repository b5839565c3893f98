"""What tests through mpirun share: the bits of one process."""

import pytest

from tests.mpi.runs import train


@pytest.fixture(scope="session")
def single(digits, tmp_path_factory):
    """Return a function that trains a run by the strategy `single`, once."""
    known = {}

    def of(name):
        if name not in known:
            output = tmp_path_factory.mktemp("single")
            known[name] = train(digits, output, name, 1, "--strategy", "single")
        return known[name]

    return of
