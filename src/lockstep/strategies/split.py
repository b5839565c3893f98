"""A model as a list of blocks, and the blocks as stages of about equal cost."""

import contextlib
import functools
from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lockstep.errors import UserError, first_line
from lockstep.reduce.buffers import Buffers
from lockstep.tensors import digest

# What a float that goes in or comes out costs, in the floating-point operations of convolutions:
# about that on CPUs, where pooling and activations are bound by memory.
FLOPS_PER_FLOAT = 16


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Return the blocks that, one after the other, compute what the model does.

    They are what the model's own method `blocks()` returns, if it has one; the layers of an
    nn.Sequential; for a ResNet of torchvision's its stem, its residual blocks and its head; for
    torchvision's models of features, pooling and a classifier (AlexNet, VGG, MobileNet, ...) the
    layers of these.

    Raises:
        UserError: the model is none of these.
    """
    if callable(getattr(model, "blocks", None)):
        return list(model.blocks())  # type: ignore[operator]
    parts = _parts(model)
    if parts is None:
        raise UserError(
            f"model: {type(model).__name__} cannot be cut into stages; expected an nn.Sequential, "
            f"one of torchvision's that is a chain of blocks (such as resnet50), or a method "
            f"blocks() that returns the modules to call one after the other; or take another "
            f"strategy"
        )
    return [block for part in parts for block in _flatten(part)]


def _parts(model: nn.Module) -> list[nn.Module] | None:
    if type(model) is nn.Sequential:
        return [model]
    children = dict(model.named_children())
    if {"conv1", "bn1", "relu", "maxpool", "layer1", "avgpool", "fc"} <= set(children):
        return [
            flat
            for name, child in children.items()
            for flat in ([nn.Flatten(), child] if name == "fc" else [child])
        ]
    if list(children) == ["features", "avgpool", "classifier"]:
        return [children["features"], children["avgpool"], nn.Flatten(), children["classifier"]]
    return None


def _flatten(module: nn.Module) -> list[nn.Module]:
    if type(module) is not nn.Sequential:
        return [module]
    return [block for child in module for block in _flatten(child)]


def cut(model: nn.Module, example: torch.Tensor, stages: int) -> list[nn.Sequential]:
    """Cut a model into `stages` stages of consecutive blocks, the costliest as cheap as can be.

    A block's cost is counted, not measured, so that every rank cuts alike: the floating-point
    operations of its forward pass, and the floats that go in and come out. A stage begins with a
    block that has parameters to train, so that none is without.

    Args:
        model: in training mode; it is left as it was.
        example: made-up inputs, of two samples.
        stages: how many.

    Raises:
        UserError: the model is not a chain of blocks, or not of so many.
    """
    name, blocks = type(model).__name__, blocks_of(model)
    groups, costs = _groups(blocks, _costs(model, blocks, example))
    if len(groups) < stages:
        raise UserError(
            f"model: {name} has {len(groups)} blocks with parameters to train, too few for "
            f"{stages} stages; take {len(groups)} at most (blocks that share a parameter count as "
            f"one, with all between them)"
        )
    cuts = [
        nn.Sequential(*(block for group in groups[a:b] for block in group))
        for a, b in balance(costs, stages)
    ]
    if {id(t) for stage in cuts for t in tensors_of(stage)} != {id(t) for t in tensors_of(model)}:
        raise UserError(f"model: the blocks of {name} do not have just the parameters that it has")
    return cuts


def tensors_of(module: nn.Module) -> list[torch.Tensor]:
    """Return a module's parameters and buffers."""
    return [*module.parameters(), *module.buffers()]


def balance(costs: Sequence[int], stages: int) -> list[tuple[int, int]]:
    """Return the bounds of `stages` runs of consecutive items whose largest sum is smallest."""

    @functools.cache
    def best(first: int, left: int) -> tuple[int, list[tuple[int, int]]]:
        if left == 1:
            return sum(costs[first:]), [(first, len(costs))]
        found = []
        for end in range(first + 1, len(costs) - left + 2):
            largest, bounds = best(end, left - 1)
            found.append((max(sum(costs[first:end]), largest), [(first, end), *bounds]))
        return min(found)

    return best(0, stages)[1]


def blocks_apart(model: nn.Module, example: torch.Tensor) -> list[nn.Module]:
    """Return the blocks with parameters to train that a forward pass calls just once, and that
    share no parameter with the rest of the model; none, if it is no chain of blocks.

    Args:
        model: in training mode; it is left as it was.
        example: made-up inputs, of two samples.
    """
    try:
        blocks = list(dict.fromkeys(blocks_of(model)))
    except UserError:
        return []
    calls: Counter[nn.Module] = Counter()
    hooks = [b.register_forward_pre_hook(lambda block, _: calls.update([block])) for b in blocks]
    with evaluating(model):
        model(example.clone())
    for hook in hooks:
        hook.remove()
    inside = {module for block in blocks for module in block.modules()}
    users = Counter(p for block in blocks for p in block.parameters())
    users.update(p for m in {*model.modules()} - inside for p in m.parameters(recurse=False))
    return [
        block
        for block in blocks
        if calls[block] == 1
        and any(p.requires_grad for p in block.parameters())
        and all(users[p] == 1 for p in block.parameters())
    ]


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Let a model in training mode compute as it does when evaluated, and leave it as it was."""
    buffers = Buffers(model)
    before = buffers.copies()
    model.eval()
    try:
        # What it draws even so, it draws alike each time.
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            yield
    finally:
        model.train()
        buffers.restore(before)


def _costs(model: nn.Module, blocks: list[nn.Module], example: torch.Tensor) -> list[int]:
    """Count what each block costs, and see that the blocks do compute what the model does."""
    costs, value = [], example.clone()  # a block may work in place
    try:
        with evaluating(model):
            for block in blocks:
                before = value.numel()
                with FlopCounterMode(display=False) as counter:
                    value = block(value)
                costs.append(counter.get_total_flops() + FLOPS_PER_FLOAT * (before + value.numel()))
        with evaluating(model):
            same = digest(value) == digest(model(example.clone()))
    except Exception as error:  # it is the user's code that runs here
        raise UserError(
            f"model: the blocks of {type(model).__name__} cannot be called one after the other, "
            f"each with the tensor that the last one returned: {first_line(error)}"
        ) from error
    if not same:
        raise UserError(
            f"model: the blocks of {type(model).__name__}, called one after the other, do not "
            f"return what the model does"
        )
    return costs


def _groups(blocks: list[nn.Module], costs: list[int]) -> tuple[list[list[nn.Module]], list[int]]:
    """Join blocks without parameters to train to the ones before them, and blocks that share a
    parameter or buffer, with all between them."""
    groups: list[list[nn.Module]] = []
    sums: list[int] = []
    trained = False
    for block, cost in zip(blocks, costs, strict=True):
        begins = any(p.requires_grad for p in block.parameters())
        if not groups or (begins and trained):
            groups.append([])
            sums.append(0)
        trained = trained or begins
        groups[-1].append(block)
        sums[-1] += cost
        while any(map(_tensors(groups[-1]).intersection, map(_tensors, groups[:-1]))):
            groups[-2:] = [groups[-2] + groups[-1]]
            sums[-2:] = [sums[-2] + sums[-1]]
    return groups, sums


def _tensors(blocks: list[nn.Module]) -> set[torch.Tensor]:
    return {t for block in blocks for t in tensors_of(block)}
