"""What a run's bits follow from: by its hash, a run finds its checkpoints and no other's."""

from pathlib import Path
from typing import Any

import torch

from lockstep import determinism, provenance, strategies
from lockstep.files import sha256
from lockstep.pipeline.config import PLACE, Run
from lockstep.pipeline.data.manifest import Manifest


def inputs(run: Run, manifest: Manifest, partition: Path) -> dict[str, Any]:
    """Return what a rank trains with, apart from its flags and the machine."""
    return {
        "data": {
            "task": manifest.task,
            "shape": list(manifest.shape),
            "outputs": manifest.outputs,
            "mean": manifest.mean,
            "std": manifest.std,
            **manifest.sha256,
        },
        "partition": sha256(partition),
        **determinism.software(),
        "code": provenance.code_of_training(run.strategy, run.model),
    }


def about(
    run: Run, inputs: dict[str, Any], initial: str, device: torch.device, backend: str
) -> dict[str, Any]:
    """Return all that the run's bits follow from, and nothing that they do not depend on.

    Args:
        run: the run's configuration.
        inputs: what `inputs` returned.
        initial: the digest of the initial weights.
        device: of the kind that is computed on.
        backend: by which ranks communicate.
    """
    # With what the configuration's own code makes of it, which is not among the code.
    # Where weights to begin with lie says nothing: they are among the initial ones.
    configuration = {**run.model_dump(exclude=PLACE | {"weights"}), "one_shot": run.one_shot}
    if not strategies.keeps_bits(run):
        configuration |= {"ranks": run.ranks, "backend": backend}
    return {
        "configuration": configuration,
        **inputs,
        "device": device.type,
        "initial weights": initial,
    }
