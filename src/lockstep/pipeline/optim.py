"""Optimizers, and learning rates as a function of the step."""

import math

import torch
from torch import nn

from lockstep.errors import UserError
from lockstep.pipeline.config import Run
from lockstep.pipeline.models.pretrained import NONE, Head
from lockstep.torch_private import without_compiler


def make_optimizer(run: Run, model: nn.Module, head: Head = NONE) -> torch.optim.Optimizer:
    """Return the run's optimizer over the model's parameters, fused where torch has it so.

    Args:
        run: the run's configuration.
        model: the model, a copy or a part of it.
        head: of the whole model; its learning rate is `lr` itself.

    Raises:
        UserError: nothing of the model is trained.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not trained:
        raise UserError(f"model: {run.model} has no parameter that is trained (requires_grad)")
    # Biases and the weights of normalisation layers are the parameters of one dimension.
    kinds: dict[tuple[float, bool], list[nn.Parameter]] = {
        (share, decay): [] for share in (run.backbone_lr, 1.0) for decay in (True, False)
    }
    for name, p in trained:
        share = 1.0 if head.has(name, p) else run.backbone_lr
        kinds[share, p.ndim > 1 or run.decay_norm_bias].append(p)
    groups = [
        {"params": some, "weight_decay": run.weight_decay if decay else 0.0, "lr_share": share}
        for (share, decay), some in kinds.items()
        if some
    ]
    if run.optimizer == "sgd":
        more = {"momentum": run.momentum, "nesterov": run.nesterov}
        return without_compiler(torch.optim.SGD)(groups, lr=run.lr, fused=True, **more)
    kind = torch.optim.Adam if run.optimizer == "adam" else torch.optim.AdamW
    return without_compiler(kind)(groups, lr=run.lr, fused=True)


def learning_rate(run: Run, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of a step (counted from 0), of which there are epochs x steps.

    constant; step (dropping every `step_epochs`); cosine (Loshchilov and Hutter, "SGDR", 2017, one
    cycle to 0); onecycle (Smith and Topin, "Super-convergence", 2018: up from lr/25 over the first
    30 % of the steps and down to lr/250,000, along cosines, as PyTorch's OneCycleLR does it).
    """
    total = run.epochs * steps_per_epoch
    if run.schedule == "onecycle":
        peak = 0.3 * total - 1
        if step <= peak:
            return _cosine(run.lr / 25, run.lr, step / peak)
        return _cosine(run.lr, run.lr / 25e4, (step - peak) / (total - 1 - peak))
    warmup = run.warmup * steps_per_epoch
    if step < warmup:
        return run.lr * (step + 1) / warmup if step + 1 < warmup else run.lr
    if run.schedule == "cosine":
        return _cosine(run.lr, 0.0, (step - warmup) / (total - warmup))
    if run.schedule == "step":
        return run.lr * run.step_gamma ** (step // (run.step_epochs * steps_per_epoch))
    return run.lr


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
