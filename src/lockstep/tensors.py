"""Weights in files: safetensors, so that opening one runs nothing."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from lockstep.errors import UserError
from lockstep.files import atomic


def save(
    state: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write a state_dict atomically. The same values give the same bytes.

    Args:
        state: the tensors by name.
        path: the file.
        metadata: what else it says of itself: one entry, since several would come in any order.
    """
    # Clones, because tied weights are one tensor under two names, which the format refuses.
    plain = {name: value.detach().cpu().clone() for name, value in state.items()}
    with atomic(path) as draft:
        write(plain, draft, path, metadata)


def write(
    tensors: Mapping[str, torch.Tensor],
    draft: Path,
    path: Path,
    metadata: dict[str, str] | None = None,
) -> None:
    """Write tensors, none of which shares another's memory, to a file that is not looked at yet.

    Args:
        tensors: each is read when it is written.
        draft: the file.
        path: what it is going to be, for the message.
        metadata: as in `save`.

    Raises:
        UserError: it cannot be written.
    """
    try:
        plain = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(plain, draft, metadata)
    except SafetensorError as error:  # that of a full disk is not an OSError
        raise UserError(f"{path}: cannot be written ({error})") from None


class Stored(Mapping[str, torch.Tensor]):
    """The tensors of a safetensors file, each read when it is asked for.

    Raises:
        UserError: the file is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        try:
            # "pread": memory that is mapped counts as this process's as long as the file is open.
            self.file = safe_open(path, framework="pt", backend="pread")
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{path}: not a whole safetensors file ({error}); train again"
            ) from None
        self.names = dict(zip(self.file.keys(), self.file.keys(), strict=True))

    def some(self, names: dict[str, str]) -> "Stored":
        """Return some of them, under names of their own (the keys)."""
        part = object.__new__(Stored)
        part.file, part.names = self.file, names
        return part

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.file.get_tensor(self.names[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def read(path: Path) -> dict[str, torch.Tensor]:
    """Read a state_dict.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({error}); train again") from None


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors in a file, of which nothing else is read.

    Raises:
        UserError: the file is missing or damaged.
    """
    file = Stored(path).file
    return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def load(model: nn.Module, path: Path) -> None:
    """Put the weights in `path` into `model`, which must have just these.

    Raises:
        UserError: the file is damaged, or is of another model.
    """
    put(model, read(path), path)


def put(model: nn.Module, values: dict[str, torch.Tensor], path: Path) -> None:
    """Put weights that come from `path` into `model`, which must have just these.

    Raises:
        UserError: they are of another model.
    """
    try:
        model.load_state_dict(values)
    except RuntimeError as error:
        first = str(error).splitlines()[1:2] or [str(error)]
        raise UserError(f"{path}: not the weights of this model: {first[0].strip()}") from None


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor's elements as bytes (uint8, flat): a view of it, where it is contiguous.

    Bytes can be sent by any backend; Gloo has no int16.
    """
    return tensor.detach().contiguous().view(-1).view(torch.uint8)


def digest(value: Any) -> str:
    """Return the SHA-256 of nested dictionaries and lists of tensors and numbers."""
    hasher = hashlib.sha256()

    def add(part: Any) -> None:
        if isinstance(part, torch.Tensor):
            hasher.update(f"{part.dtype}{tuple(part.shape)};".encode())
            hasher.update(as_bytes(part.cpu()).numpy().data)
        elif isinstance(part, Mapping):
            hasher.update(f"dict {len(part)};".encode())
            for key in sorted(part, key=repr):
                hasher.update(f"{key!r}:".encode())
                add(part[key])
        elif isinstance(part, list | tuple):
            hasher.update(f"list {len(part)};".encode())
            for item in part:
                add(item)
        else:
            hasher.update(f"{part!r};".encode())

    add(value)
    return hasher.hexdigest()
