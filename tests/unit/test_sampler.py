"""sampler: which samples come when, of the data and the seed alone."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.sampler import Sampler, split


@st.composite
def cases(draw):
    shards = draw(st.integers(1, 6))
    each = draw(st.integers(1, 10))
    samples = draw(st.integers(shards * each, 100))
    return samples, shards, shards * each, draw(st.integers(0, 2**63 - 1))


@given(cases())
@settings(max_examples=50)
def test_an_epoch_sees_each_sample_once_but_for_a_remainder(case):
    samples, shards, batch, seed = case
    sampler = Sampler(split(samples, shards, seed), batch, seed)
    assert sampler.batches == samples // shards // (batch // shards)
    for epoch, shard in itertools.product(range(2), range(shards)):
        found = [sampler.ids(epoch, index, shard) for index in range(sampler.batches)]
        assert all(ids.shape == (batch // shards,) for ids in found)
        ids = np.concatenate(found)
        assert len(set(ids)) == len(ids)
        assert set(ids) <= set(sampler.members[shard])
        # What is left out is less than a micro-batch, and one more where sizes differ by one.
        assert len(sampler.members[shard]) - len(ids) <= batch // shards


@given(st.integers(1, 200), st.integers(1, 12), st.integers(0, 2**63 - 1))
def test_a_split_has_each_sample_once_and_sizes_equal_within_one(samples, shards, seed):
    parts = split(samples, shards, seed)
    assert sorted(np.concatenate(parts)) == list(range(samples))
    sizes = [len(ids) for ids in parts]
    assert len(sizes) == shards
    assert max(sizes) - min(sizes) <= 1
    assert all(np.array_equal(ids, np.sort(ids)) for ids in parts)
    again = split(samples, shards, seed)
    assert all(map(np.array_equal, parts, again))


def test_a_split_is_at_random_and_of_its_seed():
    parts = [tuple(split(100, 4, seed)[0]) for seed in range(3)]
    assert len(set(parts)) == 3
    assert parts[0] != tuple(range(25))


def test_the_order_of_asking_does_not_matter():
    places = list(itertools.product(range(3), range(5), range(4)))
    in_order, shuffled = (Sampler(split(80, 4, 5), 16, 5) for _ in range(2))
    first = {place: in_order.ids(*place) for place in places}
    for place in np.random.default_rng(0).permutation(places):
        assert np.array_equal(shuffled.ids(*place.tolist()), first[tuple(place.tolist())])


def test_epochs_shards_and_seeds_have_their_own_order():
    def order(seed, epoch, shard):
        sampler = Sampler([np.arange(40), np.arange(40)], 2, seed)
        return tuple(sampler.ids(epoch, index, shard).item() for index in range(40))

    places = list(itertools.product((0, 1, 2**32), (0, 1, 2), (0, 1)))
    assert len({order(*place) for place in places}) == len(places)


@pytest.mark.parametrize("batch", [6, 3])
def test_a_batch_that_shards_cannot_share_is_refused(batch, refused):
    with refused("batch: 4 shards", f"a batch of {batch} evenly; take 4"):
        Sampler(split(80, 4, 0), batch, 0)


def test_a_batch_larger_than_a_shard_is_refused(refused):
    assert Sampler(split(42, 4, 0), 40, 0).batches == 1
    with refused("batch: 44 samples over 4 shards take 11", "has 10", "at most 40"):
        Sampler(split(42, 4, 0), 44, 0)
