"""cost: bus bandwidth as nccl-tests define it, and the steps of known algorithms."""

import pytest

from lockstep.measure.cost import bus_factor, steps

# https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md, and src/gather.cu, scatter.cu
FACTORS = {
    "all_reduce": 2 * 7 / 8,
    "reduce_scatter": 7 / 8,
    "all_gather": 7 / 8,
    "gather": 7 / 8,
    "scatter": 7 / 8,
    "all_to_all": 7 / 8,
    "broadcast": 1,
    "reduce": 1,
    "send_recv": 1,
    "isend_irecv": 1,
}


@pytest.mark.parametrize("operation", FACTORS)
def test_the_factors_are_those_of_nccl_tests(operation):
    assert bus_factor(operation, 8) == FACTORS[operation]


@pytest.mark.parametrize(
    ("operation", "ring", "tree"),
    [
        ("all_reduce", 14, 6),
        ("all_gather", 7, 3),
        ("reduce_scatter", 7, 3),
        ("all_to_all", 7, 7),
        ("broadcast", 3, 3),
        ("barrier", 3, 3),
        ("send_recv", 1, 1),
    ],
)
def test_steps_on_8_ranks(operation, ring, tree):
    assert steps(operation, 8, ring=True) == ring
    assert steps(operation, 8, ring=False) == tree


@pytest.mark.parametrize("ring", [True, False])
@pytest.mark.parametrize("operation", FACTORS)
def test_one_rank_needs_no_step_and_more_ranks_never_fewer(operation, ring):
    counts = [steps(operation, ranks, ring) for ranks in range(1, 40)]
    assert counts[0] == 0
    assert counts[1] >= 1
    assert counts == sorted(counts)
