"""comm.tree: a sum whose bits depend on the number of shards alone."""

import functools
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.reduce.tree import Node, TreeReduce, block, fold, places, push

SPLITS = [(s, p) for s in range(1, 17) for p in range(1, s + 1) if s % p == 0]


def wild(shards, length, seed):
    """Return a random vector for each shard, of magnitudes from 1e-30 to 1e30."""
    random = np.random.default_rng(seed)
    values = random.standard_normal((shards, length)) * 10.0 ** random.uniform(
        -30, 30, (shards, length)
    )
    # So that much cancels, and the order shows in every bit.
    values[:, ::3] = random.standard_normal((shards, values[:, ::3].shape[1]))
    return torch.from_numpy(values.astype(np.float32))


def bits(value):
    return value.numpy().tobytes()


def by_definition(terms):
    """Sum terms along the tree, level by level, as the module's docstring defines it."""
    level = list(terms)
    while len(level) > 1:
        level = [
            level[i] + level[i + 1] if i + 1 < len(level) else level[i]
            for i in range(0, len(level), 2)
        ]
    return level[0]


def by_ranks(terms, ranks):
    """Sum terms as that many ranks do: each its own block, then all their nodes, in order."""
    shards = len(terms)
    meeting = []
    for rank in range(ranks):
        stack = []
        for shard in block(rank, ranks, shards):
            push(stack, Node(0, shard, terms[shard].clone()))
        assert [(node.level, node.index) for node in stack] == places(block(rank, ranks, shards))
        for node in stack:
            push(meeting, node)
    return fold(meeting)


@pytest.mark.parametrize(("shards", "ranks"), SPLITS)
def test_any_number_of_ranks_gives_the_bits_of_the_definition(shards, ranks):
    for seed in range(5):
        terms = wild(shards, 200, seed)
        assert bits(by_ranks(terms, ranks)) == bits(by_definition(terms))


@given(
    st.sampled_from(SPLITS).flatmap(
        lambda split: st.tuples(
            st.just(split),
            st.lists(
                st.lists(
                    st.floats(-(2.0**120), 2.0**120, width=32),
                    min_size=split[0],
                    max_size=split[0],
                ),
                min_size=1,
                max_size=4,
            ),
        )
    )
)
@settings(max_examples=200)
def test_any_finite_values_give_the_bits_of_the_definition(case):
    (_, ranks), columns = case
    terms = torch.tensor(columns, dtype=torch.float32).T.contiguous()
    assert bits(by_ranks(terms, ranks)) == bits(by_definition(terms))


def test_another_order_of_the_sum_would_show():
    terms = wild(16, 200, 0)
    in_sequence = functools.reduce(torch.add, terms)
    assert bits(in_sequence) != bits(by_definition(terms))


@given(st.sampled_from(SPLITS))
def test_blocks_are_contiguous_equal_and_whole(split):
    shards, ranks = split
    blocks = [list(block(rank, ranks, shards)) for rank in range(ranks)]
    assert list(itertools.chain(*blocks)) == list(range(shards))
    assert {len(some) for some in blocks} == {shards // ranks}


@given(st.integers(0, 200), st.integers(1, 200))
def test_a_block_leaves_few_nodes_that_cover_it_once(start, length):
    found = places(range(start, start + length))
    covered = [shard for level, i in found for shard in range(i * 2**level, (i + 1) * 2**level)]
    assert covered == list(range(start, start + length))
    assert len(found) <= 2 * length.bit_length()


@given(st.integers(1, 16), st.integers(1, 50))
def test_one_rank_sums_along_the_tree_and_takes_no_new_buffers(shards, length):
    tree = TreeReduce(length, shards, 0, 1, torch.float32, torch.device("cpu"))
    buffers = set()
    for step in range(4):
        terms = wild(shards, length, step)
        stack = []
        for shard in range(shards):
            term = tree.take()
            buffers.add(term.data_ptr())
            term[:length] = terms[shard]
            tree.add(stack, shard, term)
        total = tree.all_reduce(stack)
        assert stack == []
        assert bits(total[:length]) == bits(by_definition(terms))
        tree.free(total)
        if step == 0:
            first = set(buffers)
    assert buffers == first
    assert len(buffers) <= shards.bit_length() + 1
