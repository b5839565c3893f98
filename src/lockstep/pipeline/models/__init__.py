"""Models: the small ones of the tutorials, torchvision's classifiers, and the user's own."""

import difflib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn
from torch.nn.parameter import UninitializedParameter

from lockstep import tensors
from lockstep.determinism import seeded
from lockstep.errors import UserError, first_line
from lockstep.pipeline.kinds import CLASSIFICATION, TASKS, Kind
from lockstep.pipeline.model_file import KEY
from lockstep.pipeline.models.gpt import GPT
from lockstep.pipeline.own import find
from lockstep.reduce.layout import settle

Shape = tuple[int, ...]


def build(
    name: str,
    shape: Shape,
    outputs: int,
    seed: int = 0,
    kind: Kind = CLASSIFICATION,
    like: Mapping[str, Shape] | None = None,
) -> nn.Module:
    """Build a model with initial weights that depend on `seed` alone.

    Args:
        name: `cnn`, `linear`, `mlp`, `gpt`, a torchvision classifier, or `package.module:function`.
        shape: of an input: (C, H, W) of an image.
        outputs: how many there are: classes, targets, tokens.
        seed: what the initial weights are drawn from.
        kind: the task that it is to learn.
        like: the shapes of the weights that it is going to get, by name: they say how a ResNet
            begins.

    Raises:
        UserError: there is no such model, or it does not turn a batch of such inputs into what the
            task wants.
    """
    with seeded("weights", seed):  # a model of the user's may draw by Python or NumPy, too
        return _built(name, shape, outputs, kind, like or {})


def load(path: Path | str) -> nn.Module:
    """Return the model of a run's model.safetensors, in evaluation mode: the file says which it is.

    Raises:
        UserError: the file does not say which, it cannot be built, or the weights are not its own.
    """
    path = Path(path)
    with safe_open(path, "pt") as file:
        said = file.metadata() or {}
    if KEY not in said:
        raise UserError(
            f"{path}: does not say which model it is; take one that Lockstep has trained"
        )
    about = json.loads(said[KEY])
    shape, kind = tuple(about["shape"]), TASKS[about["task"]]
    like = tensors.shapes(path)
    model = build(about["model"], shape, about["outputs"], kind=kind, like=like)
    tensors.load(model, path)
    return model.eval()


def _built(
    name: str, shape: Shape, outputs: int, kind: Kind, like: Mapping[str, Shape]
) -> nn.Module:
    make = _find(name, kind, like)
    expected = (2, *kind.outputs(shape, outputs))
    try:
        model = make(shape, outputs)
        if not isinstance(model, nn.Module):
            raise UserError(
                f"model: {name} gave {type(model).__name__}, expected a torch.nn.Module"
            )
        model.eval()
        with torch.no_grad():
            if any(isinstance(p, UninitializedParameter) for p in model.parameters()):
                model(zeros(2, shape, kind))
            settle(model)
            made = model(zeros(2, shape, kind))
    except UserError:
        raise
    except Exception as error:
        why = first_line(error)
        raise UserError(f"model: {name} does not take {kind.unit} of {shape}: {why}") from error
    if not isinstance(made, torch.Tensor) or made.shape != expected:
        found = tuple(made.shape) if isinstance(made, torch.Tensor) else type(made).__name__
        raise UserError(
            f"model: {name} turns 2 {kind.unit} of {shape} into {found}, expected {expected}: "
            f"{kind.meaning}"
        )
    return model.train()


def zeros(count: int, shape: Shape, kind: Kind = CLASSIFICATION) -> torch.Tensor:
    """Return so many inputs as a task has them."""
    return torch.zeros(count, *shape, dtype=torch.int64 if kind.integers else torch.float32)


def rehearse(
    name: str, model: nn.Module, shape: Shape, count: int, kind: Kind = CLASSIFICATION
) -> None:
    """Do one step's forward and backward passes, to see that the model can be trained.

    Args:
        name: of the model, for messages.
        model: what `build` returned.
        shape: of an input.
        count: how many it gets at once.
        kind: the task that it is to learn.

    Raises:
        UserError: it cannot, with so many inputs at once; or it ends with a softmax.
    """
    try:
        outputs = model.train()(zeros(count, shape, kind))
        outputs.square().mean().backward()
    except Exception as error:
        why = first_line(error)
        raise UserError(
            f"model: {name} cannot be trained on {count} {kind.unit} of {shape} at once: {why}"
        ) from error
    if kind.classes and (outputs >= 0).all() and ((outputs.sum(-1) - 1).abs() < 1e-4).all():
        raise UserError(
            f"model: {name} returns probabilities, which add up to 1; expected logits: leave the "
            f"softmax away, for the loss has it"
        )


def _find(name: str, kind: Kind, like: Mapping[str, Shape]) -> Callable[[Shape, int], nn.Module]:
    own: dict[str, Callable[[Shape, int], nn.Module]] = (
        {"gpt": gpt} if kind.integers else {"cnn": cnn, "linear": linear, "mlp": mlp}
    )
    if name in own:
        return own[name]
    if ":" in name:
        called = "with the shape of an input and the number of outputs"
        return find(name, "model", called, ((1, 28, 28), 10))
    if kind.integers:
        raise UserError(
            f"model: no {name!r} for {kind.name}; take gpt, or package.module:function of your own"
        )
    import torchvision  # here, because it takes a second, and the small models need none of it

    known = torchvision.models.list_models(torchvision.models)
    if name in known:
        # These two would give the scores of helpers as well.
        options = {"aux_logits": False} if name in ("googlenet", "inception_v3") else {}
        return lambda shape, classes: adapt(
            torchvision.models.get_model(name, weights=None, num_classes=classes, **options),
            shape,
            like,
        )
    near = difflib.get_close_matches(name, [*own, *known], 1)
    meant = f"; did you mean {near[0]!r}? Or" if near else ";"
    raise UserError(
        f"model: no {name!r}{meant} take cnn, linear, mlp, one of torchvision's classifiers (such "
        f"as resnet50), or package.module:function of your own"
    )


def linear(shape: Shape, outputs: int) -> nn.Module:
    """One linear layer over all that a sample has: softmax, or least-squares, regression."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), outputs))


def mlp(shape: Shape, outputs: int) -> nn.Module:
    """Two hidden layers of 64 units with ReLU, over all that a sample has."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(math.prod(shape), 64),
        nn.ReLU(),
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Linear(64, outputs),
    )


def gpt(shape: Shape, vocabulary: int) -> nn.Module:
    """A small decoder-only transformer, for sequences as long as those of the data."""
    return GPT(shape[0], vocabulary)


def cnn(shape: Shape, classes: int) -> nn.Module:
    """The small CNN of PyTorch's MNIST examples, without its dropout.

    Two 5 x 5 convolutions (10 and 20 channels), each with 2 x 2 max-pooling and ReLU, then 50
    hidden units. For 1 x 28 x 28 it has 320 features and 21,840 parameters.
    """
    if len(shape) != 3:
        raise UserError(f"model: cnn takes images, not inputs of {shape}; take linear, or mlp")
    channels, height, width = shape
    rows, columns = (((side - 4) // 2 - 4) // 2 for side in (height, width))
    if rows < 1 or columns < 1:
        raise UserError(
            f"model: cnn takes images of 16 x 16 pixels or more, not {height} x {width}"
        )
    return nn.Sequential(
        nn.Conv2d(channels, 10, kernel_size=5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(10, 20, kernel_size=5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(20 * rows * columns, 50),
        nn.ReLU(),
        nn.Linear(50, classes),
    )


def adapt(model: nn.Module, shape: Shape, like: Mapping[str, Shape]) -> nn.Module:
    """Fit one of torchvision's classifiers to the number of channels, and ResNets to small images.

    They begin with a convolution over three channels; for another number it gets a new one.
    ResNets shrink the image by 4 before the first block; below 64 pixels they start with a 3 x 3
    convolution and no pooling instead, as in He et al., "Deep residual learning" (2016),
    section 4.2, unless the weights that they get are of the large one.
    """
    import torchvision

    channels, height, width = shape
    begins = like.get("conv1.weight", (64, channels, 3, 3))
    large = begins[1:] == (channels, 7, 7)
    if isinstance(model, torchvision.models.ResNet) and min(height, width) < 64 and not large:
        model.conv1 = nn.Conv2d(channels, 64, kernel_size=3, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()
        return model
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d):
            if layer.in_channels != channels:
                first = nn.Conv2d(
                    channels,
                    layer.out_channels,
                    layer.kernel_size,  # type: ignore[arg-type]
                    layer.stride,  # type: ignore[arg-type]
                    layer.padding,  # type: ignore[arg-type]
                    bias=layer.bias is not None,
                )
                model.set_submodule(name, first)
            break
    return model
