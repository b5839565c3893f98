"""Models: the small ones of the tutorials, torchvision's classifiers, and the user's own."""

import importlib
import inspect
import random
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from lockstep import random as streams
from lockstep.errors import UserError, first_line
from lockstep.reduce.layout import settle


def build(name: str, shape: tuple[int, int, int], classes: int, seed: int = 0) -> nn.Module:
    """Build a model with initial weights that depend on `seed` alone.

    Args:
        name: `cnn`, `linear`, a torchvision classifier, or `package.module:function`.
        shape: (C, H, W) of an image.
        classes: the number of outputs.
        seed: what the initial weights are drawn from.

    Raises:
        UserError: there is no such model, or it does not turn a batch of such images into a score
            for each class.
    """
    drawn = streams.torch_seed("weights", seed)
    torch.manual_seed(drawn)
    random.seed(drawn)  # a model of the user's may draw its weights by these
    np.random.seed(drawn % 2**32)
    make = _find(name)
    try:
        model = make(shape, classes)
        if not isinstance(model, nn.Module):
            raise UserError(
                f"model: {name} gave {type(model).__name__}, expected a torch.nn.Module"
            )
        model.eval()
        with torch.no_grad():
            if any(isinstance(p, UninitializedParameter) for p in model.parameters()):
                model(torch.zeros(2, *shape))
            settle(model)
            scores = model(torch.zeros(2, *shape))
    except UserError:
        raise
    except Exception as error:
        why = first_line(error)
        raise UserError(f"model: {name} does not take images of {shape}: {why}") from error
    if not isinstance(scores, torch.Tensor) or scores.shape != (2, classes):
        found = tuple(scores.shape) if isinstance(scores, torch.Tensor) else type(scores).__name__
        raise UserError(
            f"model: {name} turns 2 images of {shape} into {found}, expected (2, {classes}): a "
            f"score for each class"
        )
    return model.train()


def rehearse(
    name: str, model: nn.Module, shape: tuple[int, int, int], classes: int, images: int
) -> None:
    """Do one step's forward and backward passes, to see that the model can be trained.

    Raises:
        UserError: it cannot, with so many images at once.
    """
    try:
        scores = model.train()(torch.zeros(images, *shape))
        nn.functional.cross_entropy(scores, torch.arange(images) % classes).backward()
    except Exception as error:
        why = first_line(error)
        raise UserError(
            f"model: {name} cannot be trained on {images} images of {shape} at once: {why}"
        ) from error


def _find(name: str) -> Callable[[tuple[int, int, int], int], nn.Module]:
    own = {"cnn": cnn, "linear": linear}
    if name in own:
        return own[name]
    if ":" in name:
        return _import(name)
    import torchvision  # here, because it takes a second, and the small models need none of it

    if name in torchvision.models.list_models(torchvision.models):
        # These two would give the scores of helpers as well.
        options = {"aux_logits": False} if name in ("googlenet", "inception_v3") else {}
        return lambda shape, classes: adapt(
            torchvision.models.get_model(name, weights=None, num_classes=classes, **options), shape
        )
    raise UserError(
        f"model: no {name!r}; take cnn, linear, one of torchvision's classifiers (such as "
        f"resnet50), or package.module:function of your own"
    )


def _import(name: str) -> Callable[[tuple[int, int, int], int], nn.Module]:
    module, _, function = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        make = getattr(importlib.import_module(module), function)
    except Exception as error:  # it is the user's code that runs here
        missing = isinstance(error, ModuleNotFoundError) or type(error) is AttributeError
        raise UserError(
            f"model: {name} cannot be imported ({type(error).__name__}: {error}); it is looked for "
            f"in {here} and among the installed packages"
        ) from (None if missing else error)
    try:
        inspect.signature(make).bind((1, 28, 28), 10)
    except (TypeError, ValueError) as error:  # such as os:system: it is not called to see
        raise UserError(
            f"model: {name} cannot be called with the shape (C, H, W) and the number of classes: "
            f"{first_line(error)}"
        ) from None
    return make


def linear(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Softmax regression: one linear layer over the pixels."""
    channels, height, width = shape
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, classes))


def cnn(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """The small CNN of PyTorch's MNIST examples, without its dropout.

    Two 5 x 5 convolutions (10 and 20 channels), each with 2 x 2 max-pooling and ReLU, then 50
    hidden units. For 1 x 28 x 28 it has 320 features and 21,840 parameters.
    """
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


def adapt(model: nn.Module, shape: tuple[int, int, int]) -> nn.Module:
    """Fit one of torchvision's classifiers to the number of channels, and ResNets to small images.

    They begin with a convolution over three channels; for another number it gets a new one.
    ResNets shrink the image by 4 before the first block; below 64 pixels they start with a 3 x 3
    convolution and no pooling instead, as in He et al., "Deep residual learning" (2016),
    section 4.2.
    """
    import torchvision

    channels, height, width = shape
    if isinstance(model, torchvision.models.ResNet) and min(height, width) < 64:
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
