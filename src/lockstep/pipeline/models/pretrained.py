"""Fine-tuning: weights that a model begins with, the head that it gets anew, what stays frozen."""

import difflib
import json
import types
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from lockstep.errors import UserError, first_line, say
from lockstep.pipeline.config import Run
from lockstep.pipeline.model_file import KEY

# Where others' checkpoints have the weights among other things.
INSIDE = ("state_dict", "model", "model_state_dict")
# Of heads that only help while training, which models are built without.
HELPERS = ("aux", "AuxLogits")


@dataclass(frozen=True)
class Head:
    """The last layer of a model, which has an output for each class.

    Args:
        names: of its parameters.
        known: the model's own parameters, by `id`, and whether each is in the head. In a part of
            the model they have other names; those of a copy are others, by the same names.
    """

    names: frozenset[str]
    known: Mapping[int, tuple[weakref.ref[nn.Parameter], bool]]

    def has(self, name: str, parameter: nn.Parameter) -> bool:
        """Return whether a parameter of the model, of a copy or of a part of it is in the head."""
        own, is_in = self.known.get(id(parameter), (None, False))
        return is_in if own and own() is parameter else name in self.names


NONE = Head(frozenset(), {})


def head_of(model: nn.Module, outputs: int) -> Head:
    """Return the head of a model: its last linear layer, or convolution, with so many outputs.

    There is none, where no layer has as many.
    """
    for name, layer in reversed([*model.named_modules()]):
        found = {nn.Linear: "out_features", nn.Conv2d: "out_channels"}.get(type(layer))
        if found and getattr(layer, found) == outputs:
            own = {f"{name}.{key}".removeprefix("."): p for key, p in layer.named_parameters()}
            inside = {*map(id, own.values())}
            known = {id(p): (weakref.ref(p), id(p) in inside) for p in model.parameters()}
            return Head(frozenset(own), known)
    return NONE


def read(path: Path) -> dict[str, torch.Tensor]:
    """Read weights: a .safetensors file, or a .pth or .pt of tensors alone.

    Raises:
        UserError: it is none, or would run code when it is opened.
    """
    try:
        if path.suffix == ".safetensors":
            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"weights: {path} is not there") from None
    except Exception as error:  # of a damaged file, torch's reader raises whatever it comes upon
        raise UserError(
            f"weights: {path} is no file of weights ({first_line(error)}); expected .safetensors, "
            f"or what torch.save(model.state_dict(), …) wrote"
        ) from None
    for key in INSIDE:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    tensors = isinstance(found, dict) and all(isinstance(v, torch.Tensor) for v in found.values())
    if not tensors or not found:
        raise UserError(
            f"weights: {path} holds {type(found).__name__}, expected a state_dict: tensors by name"
        )
    if all(name.startswith("module.") for name in found):  # of DistributedDataParallel
        found = {name.removeprefix("module."): value for name, value in found.items()}
    weights: dict[str, torch.Tensor] = found
    return weights


def load(
    model: nn.Module, weights: Mapping[str, torch.Tensor], head: Head, where: Path
) -> list[str]:
    """Put weights into a model; a head of another shape stays as it was drawn: return its names.

    Args:
        model: what `build` returned.
        weights: of a model of the same kind.
        head: of the model.
        where: the file that they are of, for messages.

    Raises:
        UserError: they are of another model.
    """
    state = model.state_dict()
    fit = {n: v for n, v in weights.items() if n in state and v.shape == state[n].shape}
    anew = sorted(state.keys() - fit.keys())
    counters = {name for name in anew if name.endswith("num_batches_tracked")}
    wrong = [name for name in anew if name not in head.names | counters]
    surplus = [n for n in weights if n not in state and not n.startswith(HELPERS)]
    if wrong or surplus:
        name = (wrong or surplus)[0]
        shapes = [
            f"{tuple(tensors[name].shape)} {place}" if name in tensors else f"not {place}"
            for tensors, place in ((weights, "in the file"), (state, "in the model"))
        ]
        more = len(wrong) + len(surplus) - 1
        raise UserError(
            f"weights: {where} is not of this model: {name!r} is {' and '.join(shapes)}"
            + (f", and {more} more differ" if more else "")
        )
    model.load_state_dict({**state, **fit})
    return [name for name in anew if name not in counters]


def freeze(model: nn.Module, what: str, head: Head) -> None:
    """Let parameters stay as they are, and BatchNorm among them keep its statistics.

    Args:
        what: `backbone`, all but the head; or prefixes of names, with commas between them.
        head: of the model.

    Raises:
        UserError: there is no such part, or nothing else is left.
    """
    names = [name for name, _ in model.named_parameters()]
    if what == "backbone":
        if not head.names:
            raise UserError(
                "freeze: backbone: the model has no last layer with an output for each class; name "
                "what is to stay by prefixes"
            )
        frozen = {name for name in names if name not in head.names}
        prefixes = None
    else:
        frozen = set()
        prefixes = [word.strip().rstrip(".") for word in what.split(",")]
        for prefix in prefixes:
            some = {name for name in names if _is_within(name, prefix)}
            if not some:
                parts = [".".join(n.split(".")[:k]) for n in names for k in range(1, 4)]
                near = difflib.get_close_matches(prefix, parts, 1) or [parts[0]]
                raise UserError(f"freeze: no parameter begins with {prefix!r}; take {near[0]}, say")
            frozen |= some
    if frozen == set(names):
        raise UserError(f"freeze: {what} leaves nothing that is trained")
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    for name, layer in model.named_modules():
        if not isinstance(layer, nn.modules.batchnorm._BatchNorm):
            continue
        own = {f"{name}.{key}" for key, _ in layer.named_parameters()}
        # One without parameters has the parts that it is in to go by.
        within = prefixes is None or any(_is_within(name, prefix) for prefix in prefixes)
        if own <= frozen and (own or within):
            layer.eval()
            layer.train = types.MethodType(_stay, layer)  # type: ignore[method-assign]


def _is_within(name: str, prefix: str) -> bool:
    return f"{name}.".startswith(f"{prefix}.")


def _stay(layer: nn.Module, mode: bool = True) -> nn.Module:
    return layer


def classes_of(path: Path) -> list[str]:
    """Return the classes of the model whose file this is, where it says so: one of a run's does."""
    if path.suffix != ".safetensors":
        return []
    with safe_open(path, "pt") as file:
        return [*json.loads((file.metadata() or {}).get(KEY, "{}")).get("classes", [])]


def prepare(
    model: nn.Module,
    run: Run,
    outputs: int,
    weights: Mapping[str, Any] | None,
    classes: Sequence[str] = (),
    first: bool = True,
) -> Head:
    """Make of a model with its first weights what a run begins with; return its head.

    Args:
        model: what `build` returned.
        run: the run's configuration.
        outputs: how many the model has.
        weights: what is to be loaded, if there is something.
        classes: those that the run learns. A head for others is drawn anew, whatever its shape.
        first: whether to say what was drawn anew, as one rank does.

    Raises:
        UserError: the weights are not of this model, or `freeze` names what it has not.
    """
    head = head_of(model, outputs)
    if weights is not None:
        where = run.weights_file or Path()
        if (known := classes_of(where)) and known != [*classes]:
            weights = {name: value for name, value in weights.items() if name not in head.names}
        if (drawn := load(model, weights, head, where)) and first:
            say(f"weights: all of {where} but {', '.join(drawn)}, drawn anew")
    if run.freeze is not None:
        freeze(model, run.freeze, head)
    if run.backbone_lr != 1 and not head.names:
        raise UserError(
            "backbone_lr: the model has no last layer with an output for each class; leave it away"
        )
    return head
