"""metrics: sums by shard, the same to the last bit however a run was shared out and cut off."""

import itertools

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from lockstep.metrics import Metrics
from lockstep.reduce.tree import block

NAMES = ("items", "loss")


@pytest.fixture(scope="module", autouse=True)
def group():
    """A process group of one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def of_ranks(ranks, shards):
    return [Metrics(shards, block(rank, ranks, shards), NAMES) for rank in range(ranks)]


def add(everyones, step, shards):
    """Add a step's sums, of sizes that make rounding show, on the ranks that have the shards."""
    draw = np.random.default_rng(step)
    losses = (draw.standard_normal(shards) * 10.0 ** draw.integers(-8, 9, shards)).tolist()
    for metrics, shard in itertools.product(everyones, range(shards)):
        if shard in metrics.mine:
            metrics.add(shard, {"items": 4.0, "loss": losses[shard]})


def together(everyones):
    """Return what the ranks' all_reduce gives: to each row all but one add zeros."""
    return sum(metrics.gather() for metrics in everyones)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(0, 6))
def test_the_sums_are_the_same_wherever_and_whenever_a_run_was_cut_off(one, other, shards, at):
    one, other = min(one, shards), min(other, shards)
    whole, parts = of_ranks(1, shards), of_ranks(one, shards)
    for step in range(6):
        if step == at:
            saved = together(parts)
            parts = of_ranks(other, shards)
            for metrics in parts:
                metrics.load(NAMES, saved)
        add(whole, step, shards)
        add(parts, step, shards)
    assert torch.equal(together(parts), whole[0].gather())
    assert whole[0].totals() == dict(zip(NAMES, whole[0].rows.sum(dim=0).tolist(), strict=True))


def test_a_rank_has_the_rows_of_its_shards_alone():
    metrics = Metrics(3, [1], NAMES)
    metrics.load(NAMES, torch.ones(3, 2, dtype=torch.float64))
    assert metrics.rows.tolist() == [[0, 0], [1, 1], [0, 0]]
    metrics.add(1, {"loss": 0.5, "items": 2})  # in whatever order
    assert metrics.rows.tolist() == [[0, 0], [3, 1.5], [0, 0]]
    metrics.reset()
    assert not metrics.rows.any()


def test_names_are_those_of_the_first_time(refused):
    metrics = Metrics(2, [0, 1])
    assert metrics.totals() == {}
    metrics.add(0, {"loss": 1.0})
    with refused("metrics: shard 1 has loss, right", "had loss before"):
        metrics.add(1, {"loss": 1.0, "right": 2.0})
    assert metrics.totals() == {"loss": 1.0}
