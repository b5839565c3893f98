"""A training loop of one's own, as a checkpointer sees it: what is kept, by steps that others take.

Every rank has the whole model and its optimizers; the gradients are those of the tree.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lockstep import optimizer
from lockstep.errors import UserError
from lockstep.metrics import Metrics


class OwnLoop:
    """A model and its optimizers, on this rank as on every other.

    Args:
        model: all that is trained.
        optimizers: its optimizers.
        shards: S.

    Raises:
        UserError: an optimizer has a parameter that is none of the model's, or is another's too.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        shards: int,
    ) -> None:
        self.model, self.optimizers = model, optimizers
        self.metrics = Metrics(shards, None)
        names = {id(p): name for name, p in model.named_parameters()}
        owners: dict[int, int] = {}
        for number, one in enumerate(optimizers, start=1):
            for parameter in optimizer.parameters(one):
                if id(parameter) not in names:
                    raise UserError(
                        f"optimizer: {type(one).__name__} has a parameter of shape "
                        f"{tuple(parameter.shape)} that is none of the model's; give the run all "
                        f"modules that are trained: session.run({{'a': ..., 'b': ...}}, ...)"
                    )
                if owners.setdefault(id(parameter), number) != number:
                    raise UserError(
                        f"optimizer: {names[id(parameter)]} is trained by optimizers "
                        f"{owners[id(parameter)]} and {number} of the run ({type(one).__name__}), "
                        f"and a checkpoint keeps the state of one; give each parameter one "
                        f"optimizer"
                    )

    def has_part_of(self, other: torch.optim.Optimizer) -> bool:
        """Return whether an optimizer has a parameter of the model."""
        held = {id(p) for p in self.model.parameters()}
        return any(id(p) in held for p in optimizer.parameters(other))

    def check_schedulers(self, schedulers: Sequence[Any]) -> None:
        """Refuse a scheduler of torch's that is not among those that a checkpoint keeps.

        Raises:
            UserError: an optimizer has one.
        """
        its = [getattr(one, "optimizer", None) for one in schedulers]
        for one in self.optimizers:
            # A scheduler leaves `initial_lr` in the groups; one of the user's own may not say whose
            # it is.
            if any("initial_lr" in group for group in one.param_groups) and not any(
                other is None or other is one for other in its
            ):
                raise UserError(
                    f"scheduler: {type(one).__name__} has one (initial_lr is in its param_groups) "
                    f"that was not given to the run, and would begin anew after a kill; give it: "
                    f"session.run(..., scheduler=...); or delete initial_lr if none is left"
                )

    def model_state(self) -> dict[str, torch.Tensor]:
        return self.model.state_dict()

    def optimizer_state(self) -> optimizer.State:
        found: optimizer.State = {}
        for one in self.optimizers:
            found |= optimizer.state_of(one, self.model)
        return found

    def own_state(self) -> dict[str, torch.Tensor]:
        return {}

    def load(self, state: optimizer.LazyState, own: Mapping[str, torch.Tensor]) -> None:
        for one in self.optimizers:
            optimizer.load_state(one, self.model, state)

    def alike(self) -> dict[str, torch.Tensor]:
        return self.model_state() | optimizer.named(self.optimizer_state())

    # What the loop may change of the model beside tensors.

    def modes(self) -> dict[str, list[str]]:
        """Return which parameters are not trained, and which modules are in eval()."""
        return {
            "frozen": [n for n, p in self.model.named_parameters() if not p.requires_grad],
            "eval": [name for name, one in self.model.named_modules() if not one.training],
        }

    def put_modes(self, modes: Mapping[str, Sequence[str]]) -> None:
        """Go on from what `modes` returned."""
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name not in modes["frozen"])
        for name, one in self.model.named_modules():
            one.training = name not in modes["eval"]

    # What optimizers have beside tensors: settings, and numbers for parameters.

    def settings(self) -> list[list[dict[str, Any]]]:
        """Return what each group of each optimizer is set to: its learning rate and the like."""
        return [
            [{key: v for key, v in group.items() if key != "params"} for group in one.param_groups]
            for one in self.optimizers
        ]

    def numbers(self) -> list[dict[str, dict[str, Any]]]:
        """Return what each optimizer keeps for parameters that is no tensor, by their names."""
        names = {id(p): name for name, p in self.model.named_parameters()}
        return [
            {
                names[id(p)]: rest
                for p, kept in one.state.items()
                if (rest := {k: v for k, v in kept.items() if not isinstance(v, torch.Tensor)})
            }
            for one in self.optimizers
        ]

    def put(
        self, settings: list[list[dict[str, Any]]], numbers: list[dict[str, dict[str, Any]]]
    ) -> None:
        """Go on from what `settings` and `numbers` returned."""
        by_name = dict(self.model.named_parameters())
        for one, groups, kept in zip(self.optimizers, settings, numbers, strict=True):
            for group, values in zip(one.param_groups, groups, strict=True):
                group.update(values)
            for name, rest in kept.items():
                one.state[by_name[name]].update(rest)
