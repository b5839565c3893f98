"""accumulator: means over items of what shards gave, whoever had which shard."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional

from lockstep.reduce.accumulator import Accumulator, total_items
from lockstep.reduce.flat import Flat
from lockstep.reduce.tree import Node, TreeReduce, block, fold, push
from tests.unit.little import make_model


@pytest.fixture(scope="module", autouse=True)
def group():
    """A process group of one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def make(model, shards):
    flat = Flat(model)
    tree = TreeReduce(flat.length, shards, 0, 1, flat.dtype, flat.device)
    return Accumulator(model, flat, tree)


def data(shards):
    """Return images and labels of each shard, of which no two need have as many."""
    draw = torch.Generator().manual_seed(0)
    sizes = [3 * shard % 7 + 1 for shard in range(shards)]
    images = [torch.randn(size, 2, 6, 6, generator=draw) for size in sizes]
    return images, [torch.randint(0, 3, (size,), generator=draw) for size in sizes]


def do(accumulator, shards, images, labels):
    """Form the gradients of some shards, and return the nodes of the tree that they add up to."""
    accumulator.begin()
    for shard in shards:
        term = accumulator.begin_shard()
        scores = accumulator.model(images[shard])
        functional.cross_entropy(scores, labels[shard], reduction="sum").backward()
        accumulator.add(shard, term)
    return [Node(node.level, node.index, node.value.clone()) for node in accumulator.stack]


@pytest.mark.parametrize("shards", [1, 2, 3, 5, 8, 12])
def test_the_sum_is_the_same_for_any_blocks_in_any_order(shards):
    images, labels = data(shards)
    accumulator = make(make_model(norm=True), shards)
    length = accumulator.flat.length
    whole = fold(do(accumulator, range(shards), images, labels))[:length]
    for ranks in range(1, shards + 1):
        stack: list[Node] = []
        blocks = [block(rank, ranks, shards) for rank in range(ranks)]
        assert sorted(shard for some in blocks for shard in some) == list(range(shards))
        assert {len(some) for some in blocks} <= {shards // ranks, -(-shards // ranks)}
        found = {}
        for some in reversed(blocks):  # the last rank may be the first that is ready
            accumulator.flat.restore(accumulator.before)
            found[some] = do(accumulator, some, images, labels)
        for node in (node for some in blocks for node in found[some]):
            push(stack, node)
        assert torch.equal(fold(stack)[:length], whole)


def test_shards_of_unequal_items_give_the_gradient_of_all_of_them_as_one_batch():
    ours = make_model()
    theirs = copy.deepcopy(ours)
    images, labels = data(5)
    items = total_items(sum(len(some) for some in labels))
    assert items == 21
    accumulator = make(ours, 5)
    do(accumulator, range(5), images, labels)
    accumulator.finish(accumulator.sum(), items)
    functional.cross_entropy(theirs(torch.cat(images)), torch.cat(labels)).backward()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_buffers_change_by_the_mean_over_the_shards_however_many_items_they_have():
    model = nn.Sequential(nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 3))
    alone = [copy.deepcopy(model) for _ in range(5)]
    images, labels = data(5)
    accumulator = make(model, 5)
    do(accumulator, range(5), images, labels)
    accumulator.finish(accumulator.sum(), 16.0)
    for one, some in zip(alone, images, strict=True):
        one(some)
    mean = torch.stack([one[0].running_mean for one in alone]).mean(dim=0)
    assert torch.allclose(model[0].running_mean, mean, rtol=1e-5)
    assert model[0].num_batches_tracked == 1


def test_a_buffer_that_does_not_change_keeps_its_bits():
    model = make_model()
    odd = torch.tensor([-0.0, 0.0, 1e-40, float("-inf"), float("nan"), 0.1])
    model.register_buffer("table", odd.clone())
    accumulator = make(model, 2)
    do(accumulator, range(2), *data(2))
    accumulator.finish(accumulator.sum(), 1)
    assert torch.equal(model.table.view(torch.int32), odd.view(torch.int32))


def test_what_was_added_and_not_summed_is_dropped():
    images, labels = data(2)
    accumulator = make(make_model(norm=True), 2)
    before = copy.deepcopy(accumulator.model)
    do(accumulator, [0], images, labels)
    accumulator.flat.restore(accumulator.before)
    do(accumulator, range(2), images, labels)
    accumulator.finish(accumulator.sum(), 5.0)
    other = make(before, 2)
    do(other, range(2), images, labels)
    other.finish(other.sum(), 5.0)
    for one, two in zip(accumulator.model.parameters(), before.parameters(), strict=True):
        assert torch.equal(one.grad, two.grad)
