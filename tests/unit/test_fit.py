"""fit: latency and bandwidth that are known come out of times that are made from them."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.measure.cost import bus_factor, steps
from lockstep.pipeline.fit import Fit, fit, fit_all

SIZES = np.array([8**k for k in range(1, 9)] + [2**26], float)
OPERATIONS = ["all_reduce", "send_recv", "broadcast", "all_gather", "all_to_all"]


def times(operation: str, ranks: int, alpha: float, beta: float, ring: bool) -> np.ndarray:
    """Return the model's seconds at SIZES, written out once more."""
    return steps(operation, ranks, ring) * alpha + SIZES * bus_factor(operation, ranks) / beta


@given(
    operation=st.sampled_from(OPERATIONS),
    backend=st.sampled_from(["gloo", "mpi4py", "nccl"]),
    ranks=st.integers(2, 64),
    alpha=st.floats(1e-7, 1e-2),
    half=st.floats(1e3, 1e6),
    seed=st.integers(0, 2**32 - 1),
)
def test_noisy_times_give_back_latency_and_bandwidth(operation, backend, ranks, alpha, half, seed):
    latency = steps(operation, ranks, ring=backend == "gloo") * alpha
    # At `half` bytes half of the time is latency, so that both show within the sizes.
    beta = half * bus_factor(operation, ranks) / latency
    seconds = times(operation, ranks, alpha, beta, ring=backend == "gloo")
    noise = np.exp(np.random.default_rng(seed).normal(0, 0.05, len(SIZES)))
    found = fit(backend, operation, ranks, SIZES, seconds * noise)
    assert found.alpha == pytest.approx(alpha, rel=0.2)
    assert found.beta == pytest.approx(beta, rel=0.2)
    assert found.deviation < 0.15
    assert found.bandwidth_shows
    assert found.seconds(2**20, ranks) == pytest.approx(
        latency + 2**20 * bus_factor(operation, ranks) / beta, rel=0.3
    )


def test_two_sizes_far_off_do_not_move_the_fit():
    seconds = times("all_reduce", 4, 2e-5, 1e9, ring=True)
    seconds[[2, 4]] *= 8  # as where a backend changes its protocol
    found = fit("gloo", "all_reduce", 4, SIZES, seconds)
    assert found.alpha == pytest.approx(2e-5, rel=0.3)
    assert found.beta == pytest.approx(1e9, rel=0.1)


def test_times_that_do_not_grow_are_all_latency():
    found = fit("nccl", "all_reduce", 2, SIZES[:4], [1e-4] * 4)
    assert found.seconds(8, 2) == pytest.approx(1e-4, rel=0.01)
    assert found.seconds(4096, 2) == pytest.approx(1e-4, rel=0.01)
    assert not found.bandwidth_shows


def test_fewer_than_three_sizes_give_no_fit():
    assert fit("gloo", "all_reduce", 2, [8, 64, 64], [1.0, 2.0, 2.0]) is None


def test_a_ring_pays_for_every_rank_and_a_tree_for_their_logarithm():
    ring = Fit("gloo", "all_reduce", alpha=1e-4, beta=1e9, deviation=0)
    tree = Fit("mpi4py", "all_reduce", alpha=1e-4, beta=1e9, deviation=0)
    assert ring.seconds(0, 1024) == pytest.approx(2046 * 1e-4)
    assert tree.seconds(0, 1024) == pytest.approx(20 * 1e-4)
    assert ring.seconds(1e9, 2) == tree.seconds(1e9, 2) == pytest.approx(1.0002)
    assert ring.seconds(1e9, 1) == 0


def test_every_operation_with_sizes_is_fitted():
    rows = [
        {"backend": backend, "operation": name, "bytes": size, "median_us": 10 + size / 1e3}
        for name in ("all_reduce", "reduce")
        for backend in ("gloo", "mpi4py")
        for size in (8, 512, 32768, 2**21)
    ]
    rows.append({"backend": "gloo", "operation": "barrier", "bytes": 0, "median_us": 9.0})
    found = fit_all(pd.DataFrame(rows), ranks=2)
    assert [(one.operation, one.backend) for one in found] == [
        *(("all_reduce", "gloo"), ("all_reduce", "mpi4py")),
        *(("reduce", "gloo"), ("reduce", "mpi4py")),
    ]
    assert found[0].alpha == pytest.approx(5e-6, rel=0.01)
    assert found[0].beta == pytest.approx(1e9, rel=0.01)
