"""fsdp: gradients in parts, added up along the tree as they come."""

import pytest
import torch
from torch import nn

from lockstep.reduce.tree import Node, fold, push
from lockstep.strategies.fsdp import PartSum
from lockstep.strategies.split import blocks_apart
from tests.mpi.models import Shared

SHAPE = (1, 6, 6)
EXAMPLE = torch.linspace(-1, 1, 72).view(2, *SHAPE)


def one_step(shards, ranks, terms):
    """Return a PartSum and its output after a step, and how many numbers it kept at most."""
    part, most = PartSum("block", shards, ranks), 0
    for first in range(0, shards, ranks):
        output = torch.full((terms.shape[1],), torch.nan)
        part._add(terms[first : first + ranks].flatten().clone(), output)
        if first + ranks < shards:
            assert not output.any()  # what FSDP2 adds up until then
        most = max(most, sum(node.value.untyped_storage().nbytes() // 4 for node in part.stack))
    return part, output, most


@pytest.mark.parametrize(("shards", "ranks"), [(8, 1), (8, 2), (8, 8), (12, 3), (12, 4), (6, 3)])
def test_the_sum_is_the_tree_s_and_few_parts_of_it_are_kept(shards, ranks):
    draw = torch.Generator().manual_seed(shards + ranks)
    terms = torch.randn(shards, 5, generator=draw)
    stack: list[Node] = []
    for shard, term in enumerate(terms.clone()):
        push(stack, Node(0, shard, term))
    part, output, most = one_step(shards, ranks, terms)
    assert torch.equal(output, fold(stack))
    part.check(shards // ranks)
    # A rank's share of the elements, for each level of the tree over the rounds, and for those of
    # the last round that have no sibling.
    assert most <= 5 * ((shards // ranks).bit_length() + (0 if ranks & (ranks - 1) == 0 else 2))


def test_a_zero_has_the_sign_that_it_has_on_one_process():
    _, output, _ = one_step(4, 2, torch.full((4, 3), -0.0))
    assert not torch.signbit(output).any()


def test_a_block_that_is_called_twice_is_refused_where_it_was_not_foreseen(refused):
    part, *_ = one_step(2, 2, torch.ones(2, 3))
    part._add(torch.ones(6), torch.empty(3))
    with refused("model: fsdp", "2 backward passes of block for 1 micro-batches", "once"):
        part.check(1)


def test_blocks_that_are_used_twice_or_share_a_parameter_are_sharded_with_the_model():
    model = Shared(SHAPE, 3).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert blocks_apart(model, EXAMPLE) == [model.first, model.own, model.last]
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Hidden(nn.Sequential):
    """A model that calls one of its blocks once more than it says."""

    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(36, 4), nn.Linear(4, 4), nn.Linear(4, 3))

    def blocks(self):
        return list(self)

    def forward(self, x):
        x = self[2](self[1](self[0](x)))
        return self[3](self[2](x))


def test_a_block_that_the_model_calls_twice_without_saying_so_is_found():
    model = Hidden().train()
    assert blocks_apart(model, EXAMPLE) == [model[1], model[3]]
    assert blocks_apart(nn.Linear(2, 2), EXAMPLE) == []
