"""An exponential moving average of a model's weights, a step after the other.

After Polyak and Juditsky, "Acceleration of stochastic approximation by averaging" (1992), and as
image classifiers are trained with it (Tan and Le, "EfficientNet", ICML 2019): the average of the
last steps' weights is often better than the last step's.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import nn

# What its tensors are called among those that a strategy keeps.
PREFIX = "ema."


class Ema:
    """The moving average of a model's trained parameters, on every rank that has the model.

    Buffers (BatchNorm's statistics) are no weights: where the average is asked for, they are the
    model's.

    Args:
        model: whose parameters are averaged.
        decay: how much of the average stays in a step. In the first ones it is less,
            (1 + n) / (10 + n) in the n-th, or the initial weights would be most of the average of
            a short training.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
        self.names, self.parameters = list(trained), list(trained.values())
        self.averages = [p.clone() for p in self.parameters]

    def update(self, step: int) -> None:
        """Take in the weights after a step, of which `step` were before it."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.averages, self.parameters, share)

    def state(self) -> dict[str, torch.Tensor]:
        """Return the averages as a strategy keeps them."""
        return {f"{PREFIX}{name}": a for name, a in zip(self.names, self.averages, strict=True)}

    def load(self, own: Mapping[str, torch.Tensor]) -> None:
        """Go on from what `state` returned."""
        for name, average in self.state().items():
            average.copy_(own[name])

    def model_state(self) -> dict[str, torch.Tensor]:
        """Return the model's state_dict, with the averages in their parameters' places."""
        found = dict(self._places())
        return {name: found.get(name, t.detach()) for name, t in self._whole().items()}

    def _places(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield each average by its names: a parameter that is there twice has two."""
        named = dict(self.model.named_parameters())
        averages = {id(named[n]): a for n, a in zip(self.names, self.averages, strict=True)}
        for name, tensor in self._whole().items():
            if id(tensor) in averages:
                yield name, averages[id(tensor)]

    def _whole(self) -> dict[str, torch.Tensor]:
        return self.model.state_dict(keep_vars=True)
