"""What an optimizer keeps, by the names of parameters; and its step."""

from collections.abc import Mapping

import torch
from torch import nn

# What an optimizer keeps for each parameter, by the name of the parameter.
State = dict[str, dict[str, torch.Tensor]]
# That again, where its tensors are read one at a time.
LazyState = Mapping[str, Mapping[str, torch.Tensor]]


def parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """Return an optimizer's parameters, in its order."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def update(optimizer: torch.optim.Optimizer, lr: float, clip: float | None) -> None:
    """Take a step with the gradients that are there, scaled down to the norm `clip` at most."""
    if clip is not None:
        nn.utils.clip_grad_norm_(parameters(optimizer), clip)
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_share", 1.0)
    optimizer.step()


def state_of(optimizer: torch.optim.Optimizer, model: nn.Module) -> State:
    """Return what an optimizer keeps for each parameter, by the parameter's name."""
    return {
        name: {key: v for key, v in optimizer.state[p].items() if isinstance(v, torch.Tensor)}
        for name, p in model.named_parameters()
        if p in optimizer.state
    }


def named(state: State) -> dict[str, torch.Tensor]:
    """Return what an optimizer keeps, each tensor by what it is of which parameter."""
    return {f"{key} of {name}": v for name, kept in state.items() for key, v in kept.items()}


def load_state(optimizer: torch.optim.Optimizer, model: nn.Module, state: LazyState) -> None:
    """Give an optimizer what `state_of` returned, as far as it has the parameters.

    It goes through all of `state`, in its order.
    """
    mine = {id(p) for p in parameters(optimizer)}
    by_name = dict(model.named_parameters())
    for name, kept in state.items():
        for key, value in kept.items():
            if id(p := by_name[name]) in mine:
                optimizer.state[p][key] = like(p, value)


def like(parameter: nn.Parameter, value: torch.Tensor) -> torch.Tensor:
    """Return a copy of `value` beside a parameter, and lying in memory as that does."""
    if value.shape != parameter.shape:
        return value.to(parameter.device, copy=True)
    return torch.empty_like(parameter.detach(), dtype=value.dtype).copy_(value)
