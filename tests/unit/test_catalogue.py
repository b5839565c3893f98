"""What strategies say of themselves: the ranks they take, and what follows from settings."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.pipeline.config import Run
from lockstep.strategies import catalogue


@given(st.integers(1, 400))
def test_divisors_are_all_there(number):
    found = [int(d) for d in catalogue.divisors(number).split(", ")]
    assert found == [d for d in range(1, number + 1) if number % d == 0]


@pytest.mark.parametrize("name", ["sync_sgd", "local_sgd"])
def test_along_the_tree_any_ranks_share_the_shards(name):
    for ranks in range(1, 9):
        assert Run(strategy=name, shards=8, ranks=ranks).ranks == ranks
    with pytest.raises(ValueError, match="ranks: 9 ranks cannot have a shard each of 8; take at"):
        Run(strategy=name, shards=8, ranks=9)


def test_a_setting_chooses_the_way_of_a_strategy():
    tree, fast = (catalogue.of(Run(reduction=way)) for way in ("tree", "fast"))
    assert (tree.label, tree.keeps_bits) == ("sync_sgd (tree)", True)
    assert (fast.label, fast.keeps_bits) == ("sync_sgd (fast)", False)
    assert [Run(strategy="local_sgd", sync_every=n).one_shot for n in (0, 1)] == [True, False]
    # What a strategy does not read changes nothing of it.
    assert catalogue.of(Run(strategy="fsdp", reduction="fast", sync_every=0)).keeps_bits


def test_every_strategy_says_which_settings_are_its_own():
    for one in catalogue.ALL:
        assert set(one.settings) <= set(Run.model_fields)
        assert set(one.chosen_by) <= set(one.settings)
        run = Run(strategy=one.name, ranks=1, stages=1, **one.chosen_by)
        assert catalogue.of(run) is one


def test_asking_loads_no_torch():
    code = "import sys, lockstep.pipeline.config; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n"
