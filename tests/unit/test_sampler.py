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


@given(cases(), st.integers(1, 120), st.integers(1, 40))
@settings(max_examples=50)
def test_with_a_window_an_epoch_sees_each_sample_once_too(case, window, block):
    samples, shards, batch, seed = case
    sampler = Sampler(split(samples, shards, seed), batch, seed, window, block)
    again = Sampler(split(samples, shards, seed), batch, seed, window, block)
    for epoch, shard in itertools.product(range(2), range(shards)):
        members, size = sampler.members[shard], batch // shards
        ids = np.concatenate([sampler.ids(epoch, i, shard) for i in range(sampler.batches)])
        assert len(set(ids)) == len(ids) and set(ids) <= set(members)
        each = max(window // shards, 1)
        windows = [sampler.in_window(epoch, w, shard) for w in range(-(-len(members) // each))]
        assert np.array_equal(np.sort(np.concatenate(windows)), np.sort(members))
        assert np.array_equal(np.concatenate(windows)[: len(ids)], ids)
        assert np.array_equal(again.ids(epoch, 0, shard), ids[:size])
        assert sampler.in_window(epoch, len(windows), shard).size == 0


def test_a_window_is_of_whole_blocks_that_come_at_random_and_alike_in_all_shards():
    sampler = Sampler(split(8000, 2, 0), 20, 1, window=800, block=100)
    assert sampler.window == 400
    windows = [sampler.in_window(0, 0, shard) for shard in range(2)]
    blocks = [list(dict.fromkeys(np.sort(ids) // 100)) for ids in windows]
    # Eight blocks of about fifty samples of each shard: the last ones are not of both.
    assert all(8 <= len(some) <= 10 for some in blocks)
    assert len(set(blocks[0]) & set(blocks[1])) >= 7
    assert max(np.diff(blocks[0])) > 1
    assert not np.array_equal(windows[0], np.sort(windows[0]))
    assert not np.array_equal(windows[0], sampler.in_window(1, 0, 0))
