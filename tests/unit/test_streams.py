"""data.streams: numbers that depend on what they are for, and on nothing else."""

import itertools
import zlib

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from lockstep import random as streams

NUMBERS = st.integers(0, 2**63 - 1) | st.integers(0, 3)
PLACES = st.tuples(NUMBERS, NUMBERS, NUMBERS)


def test_the_first_words_are_these():
    # A change of these is a change of every result: the order, the weights, the augmentation.
    assert streams.words(3, "order", 0, 0, 0).tolist() == [
        6730726682712850166,
        14995095014193405073,
        110902169359861022,
    ]
    assert streams.words(3, "augmentation", 1, 2).tolist() == [
        16215564751469290128,
        904519535635384491,
        2085727857609527865,
    ]
    assert streams.words(2, "order", 2**63 - 1, 1, 3).tolist() == [
        10841896342996651462,
        6190085882931997775,
    ]
    assert streams.permutation(8, "partition", 42).tolist() == [6, 0, 1, 2, 3, 5, 7, 4]
    assert streams.torch_seed("weights", 0) == 6386672655585885836
    assert streams.torch_seed("dropout", 0, 7, 3) == 2697484681040169599
    assert streams.generator("dirichlet", 0, 4).bit_generator.random_raw(2).tolist() == [
        11917031868181093301,
        6071410167636406524,
    ]


def test_words_are_a_prefix_of_more_words():
    assert np.array_equal(streams.words(100, "order", 5)[:10], streams.words(10, "order", 5))


@given(st.integers(0, 300), PLACES)
def test_a_permutation_is_one(count, place):
    order = streams.permutation(count, "order", *place)
    assert sorted(order) == list(range(count))
    assert np.array_equal(order, streams.permutation(count, "order", *place))


@given(PLACES, PLACES)
def test_different_places_have_different_words(one, other):
    same = np.array_equal(streams.words(4, "order", *one), streams.words(4, "order", *other))
    assert same == (one == other)


def test_neighbouring_places_have_different_words():
    # 2**32 is where a number no longer fits one word of the key.
    numbers = (0, 1, 2, 2**32 - 1, 2**32, 2**32 + 1, 2**33, 2**63 - 1)
    for length in (1, 2, 3):
        places = list(itertools.product(numbers, repeat=length))
        assert len({tuple(streams.words(2, "order", *place)) for place in places}) == len(places)


def test_purposes_are_apart():
    purposes = ("order", "augmentation", "partition", "dirichlet", "weights", "dropout", "test")
    assert len({zlib.crc32(purpose.encode()) for purpose in purposes}) == len(purposes)
    assert len({int(streams.words(1, purpose, 0)[0]) for purpose in purposes}) == len(purposes)


def test_words_use_all_their_bits():
    bits = np.unpackbits(streams.words(4000, "order", 0).view(np.uint8)).reshape(4000, 64)
    assert np.all(abs(bits.mean(axis=0) - 0.5) < 0.05)


@given(PLACES)
def test_torch_takes_the_seeds(place):
    seed = streams.torch_seed("dropout", *place)
    assert 0 <= seed < 2**63
    assert torch.Generator().manual_seed(seed).initial_seed() == seed
