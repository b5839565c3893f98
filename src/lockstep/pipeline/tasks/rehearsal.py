"""A rehearsal: two passes over one micro-batch, from the same state, must give the same bits.

A shard is computed by whichever rank has it, after whatever that rank did before, and again after
an interruption. So its gradient may depend on the weights, the buffers, the samples and torch's
random numbers, which are the shard's own, and on nothing else. What shows only after many passes
(a counter that matters from the thousandth on) cannot be seen here.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lockstep import tensors as state
from lockstep.checkpoint.state import check_kept
from lockstep.errors import UserError
from lockstep.reduce.buffers import Buffers
from lockstep.strategies.task import MicroBatch, Task
from lockstep.torch_private import tree_leaves

CURE = (
    "a pass may depend on weights, buffers, samples and torch's random numbers alone: not on "
    "NumPy's or Python's random numbers, a counter, the clock or what an attribute keeps from the "
    "pass before; draw by torch, and keep state in buffers"
)


def rehearse(model: nn.Module, task: Task, batch: MicroBatch, same: bool = True) -> None:
    """Do two forward and backward passes, and leave the model as it was.

    Args:
        model: in training mode, without gradients.
        task: what it is trained for.
        batch: the micro-batch.
        same: whether the passes must agree; a run that keeps no bits may have kernels that do not.

    Raises:
        UserError: the passes differ, or change what only an optimizer may change, or keep state
            where no checkpoint finds it; names the module, buffer or parameter.
    """
    check_kept(model)
    weights = _digests(model.named_parameters())
    kept = {module: dict(vars(module)) for module in model.modules()}
    try:
        (first, went), (second, went_again) = (_pass(model, task, batch) for _ in range(2))
    finally:  # what modules keep of a pass in attributes goes
        for module, attributes in kept.items():
            vars(module).clear()
            vars(module).update(attributes)
    changed = [n for n, d in _digests(model.named_parameters()).items() if d != weights.get(n)]
    if changed:
        raise UserError(
            f"model: the parameter {changed[0]} changes in a forward or backward pass; expected "
            f"the optimizer alone to change it: another shard's pass would find it changed or not"
        )
    if first == second or not same:
        return
    pairs = zip(went, went_again, strict=False)
    odd = next((one for (one, was), (_, is_now) in pairs if was != is_now), None)
    odd = odd or next(name for name in {**first, **second} if first.get(name) != second.get(name))
    raise UserError(
        f"model: two passes over the same samples from the same state differ in {odd}; {CURE}"
    )


def _pass(
    model: nn.Module, task: Task, batch: MicroBatch
) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Do a forward and a backward pass.

    Returns:
        Digests of what came of it, by what it is; and the modules that it went through, in the
        order in which they returned, each with the sums of what it returned.
    """
    buffers = Buffers(model)
    before = buffers.copies()
    gradients: dict[str, str] = {}
    went: list[tuple[str, str]] = []

    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, _: Any, output: Any) -> None:
            tensors = [leaf for leaf in tree_leaves(output) if torch.is_tensor(leaf)]
            sums = [t.detach().sum().item() for t in tensors]  # to find a place, not to judge by
            went.append((_named(name, module), str(sums)))

        return hook

    def take(name: str) -> Callable[[torch.Tensor], None]:
        def hook(parameter: torch.Tensor) -> None:
            gradients[f"the gradient of {name}"] = state.digest(parameter.grad)
            parameter.grad = None  # so that never all gradients are there at once

        return hook

    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    hooks = [p.register_post_accumulate_grad_hook(take(name)) for name, p in trained]
    hooks += [
        module.register_forward_hook(note(name))
        for name, module in model.named_modules()
        if not isinstance(module, torch.jit.ScriptModule)  # they take no hooks
    ]
    try:
        loss = task(model, [batch])
        loss.value.backward()
        _check_buffers(model, buffers, before)
        found = {"the loss": state.digest([loss.value.detach(), loss.sums()])}
        found |= {f"the buffer {n}": d for n, d in _digests(model.named_buffers()).items()}
        found |= dict(sorted(gradients.items()))
    finally:
        for hook in hooks:
            hook.remove()
        buffers.restore(before)
        model.zero_grad()
    return found, went


def _check_buffers(model: nn.Module, buffers: Buffers, before: list[torch.Tensor]) -> None:
    """Refuse buffers that come, go or change their shape or type, or that no checkpoint keeps."""
    now = dict(model.named_buffers())
    if odd := sorted({*now} ^ {*buffers.names}):
        raise UserError(
            f"model: the buffer {odd[0]} comes or goes in a forward pass; expected each to be "
            f"there, and shared or not, from the constructor on"
        )
    kept = model.state_dict().keys()
    for name, value in zip(buffers.names, before, strict=True):
        if (now[name].shape, now[name].dtype) != (value.shape, value.dtype):
            raise UserError(
                f"model: the buffer {name} was {value.dtype} {tuple(value.shape)} and is "
                f"{now[name].dtype} {tuple(now[name].shape)} after a forward pass; expected it to "
                f"keep type and shape"
            )
        if name not in kept and state.digest(now[name]) != state.digest(value):
            raise UserError(
                f"model: the buffer {name} changes in training, and is not in the state_dict: "
                f"no checkpoint could keep it; register it without persistent=False"
            )


def _digests(named: Any) -> dict[str, str]:
    return {name: state.digest(tensor) for name, tensor in named}


def _named(name: str, module: nn.Module) -> str:
    return f"the module {name} ({type(module).__name__})" if name else type(module).__name__


def check_bfloat16(model: nn.Module, rounded: Task, exact: Task, batch: MicroBatch) -> float:
    """Compare the gradient of a task in bfloat16 with that of the same in float32.

    Some processors and releases compute bfloat16 convolutions wrongly for some shapes, without a
    word. Rounding alone gives a few percent.

    Returns:
        Their distance, relative to the length of the exact one. The model is left as it was.

    Raises:
        UserError: the gradients have little to do with each other.
    """
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = []
    for task in (exact, rounded):
        loss = task(model, [batch])
        found = torch.autograd.grad(loss.value, parameters, allow_unused=True)
        gradients.append(torch.cat([g.flatten() for g in found if g is not None]))
        model.load_state_dict(before)
    length = gradients[0].norm().clamp_min(1e-12)
    distance = float((gradients[1] - gradients[0]).norm() / length)
    if not distance < 0.5:
        raise UserError(
            f"precision: in bfloat16 the first gradient is off by {distance:.0%} of its length on "
            f"this processor, expected below 50 %; use precision: float32"
        )
    return distance
