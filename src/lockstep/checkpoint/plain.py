"""What schedulers and optimizers keep beside tensors, as JSON: numbers, text, and what holds them.

No pickle: what is read back runs nothing.
"""

from typing import Any

import torch

from lockstep.errors import UserError


def to_plain(value: Any, what: str) -> Any:
    """Return a value as JSON has it.

    Args:
        what: whose it is, for the message.

    Raises:
        UserError: it has something in it that no JSON keeps.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [to_plain(item, what) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [to_plain(item, what) for item in value]}
    if isinstance(value, dict):  # whose keys need not be text
        return {"dict": [[to_plain(part, what) for part in pair] for pair in value.items()]}
    if isinstance(value, torch.Tensor) and value.numel() <= 1024:
        kind = str(value.dtype).removeprefix("torch.")
        return {"tensor": value.detach().cpu().tolist(), "dtype": kind}
    raise UserError(
        f"{what}: has {type(value).__name__} in its state, which no checkpoint keeps; expected "
        f"numbers, text, and lists, tuples and dictionaries of them"
    )


def from_plain(value: Any) -> Any:
    """Return what `to_plain` was given."""
    if isinstance(value, list):
        return [from_plain(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "tuple" in value:
        return tuple(from_plain(item) for item in value["tuple"])
    if "tensor" in value:
        return torch.tensor(value["tensor"], dtype=getattr(torch, value["dtype"]))
    return {from_plain(key): from_plain(item) for key, item in value["dict"]}
