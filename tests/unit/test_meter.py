"""meter: what each collective counts for."""

import pytest

from lockstep.measure.meter import least


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ("ALLREDUCE", 1500),
        ("ALLREDUCE_COALESCED", 1500),
        ("REDUCE_SCATTER_BASE", 750),
        ("ALLTOALL_BASE", 750),
        ("ALLGATHER_BASE", 3000),
        ("BROADCAST", 750),
        ("SEND", 1000),
    ],
)
def test_bytes_on_four_ranks(operation, expected):
    assert least(operation, 1000, 4) == expected


@pytest.mark.parametrize("operation", ["ALLREDUCE", "ALLGATHER", "ALLTOALL", "BROADCAST"])
def test_one_rank_sends_nothing(operation):
    assert least(operation, 1000, 1) == 0
