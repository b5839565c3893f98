"""What the file of a trained model says of itself, so that it can be used by itself.

`model.safetensors` has it as JSON, under the key `lockstep` of the format's own metadata. All of it
follows from the run, and nothing from where and how it ran: the same run has the same bytes.
"""

import json
from typing import Any

from lockstep.files import json_sha256
from lockstep.pipeline.config import PLACE
from lockstep.pipeline.data.manifest import Manifest
from lockstep.pipeline.record import Origin

KEY = "lockstep"

# What says how a run is spread over ranks, and where it lies: models of the same bits say the same.
SPREAD = {*PLACE, "strategy", "reduction", "sync_every", "weights"}


def about(origin: Origin) -> dict[str, Any]:
    """Return what one has to know to use a model, and the hash of what was to be learned.

    A model is fed (value - mean) / std, channel by channel; images are pixels / 255, N x C x H x W.
    """
    run = origin.configuration
    identity = {
        "configuration": run.model_dump(mode="json", exclude=SPREAD),
        "data": origin.data_sha256,
        "partition": origin.partition_sha256,
        "initial weights": origin.initial_sha256,
    }
    return {
        "model": run.model,
        "task": origin.task,
        "shape": origin.shape,
        "outputs": origin.outputs,
        "classes": origin.classes,
        "mean": origin.mean,
        "std": origin.std,
        "image": origin.image,
        "precision": run.precision,
        "run_sha256": json_sha256(identity),
    }


def metadata(origin: Origin) -> dict[str, str]:
    """Return the metadata of a run's model; one entry, for the format orders several at random."""
    return {KEY: json.dumps(about(origin), sort_keys=True)}


def manifest_of(origin: Origin) -> Manifest:
    """Return what a run's data were, as far as a model has to know it."""
    return Manifest(
        name=origin.dataset,
        task=origin.task,
        shape=tuple(origin.shape),
        outputs=origin.outputs,
        class_names=origin.classes,
        mean=origin.mean,
        std=origin.std,
        sha256=origin.data_sha256,
        samples={},
        counts=[],
        image=origin.image,
    )
