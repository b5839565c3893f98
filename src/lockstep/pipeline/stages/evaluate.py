"""evaluate: how good the trained and the averaged model are on the test set.

The test set is cut into chunks of a fixed size, and each rank takes a block of them: no sample is
counted twice, every kernel sees the same shapes at any number of ranks, and rank 0 adds up the
samples' losses in their own order. So the numbers are the same at any number of ranks.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional

from lockstep import determinism
from lockstep import tensors as state
from lockstep.distributed import devices, rendezvous
from lockstep.distributed.world import discover
from lockstep.errors import UserError
from lockstep.files import atomic, check_sha256, sha256, sweep, write_json
from lockstep.pipeline.config import Run
from lockstep.pipeline.data.arrays import Part, open_part
from lockstep.pipeline.data.manifest import check_files, read_manifest
from lockstep.pipeline.models import build
from lockstep.pipeline.record import check_trained_on, read_averaged, read_training
from lockstep.pipeline.tasks.classification import Normalize, autocast
from lockstep.reduce.layout import move

CHUNK = 250
OUTPUTS = ("predictions.csv", "confusion.csv", "metrics.json")
MODELS = {"last": "model.safetensors", "averaged": "averaged.safetensors"}


def evaluate(results: Path, data: Path, ranks: int, threads: int) -> dict[str, Any] | None:
    """Write `results`/predictions.csv, confusion.csv and, last, metrics.json.

    Args:
        results: the run's folder, with the two models.
        data: the folder of the prepared dataset.
        ranks: the number of processes.
        threads: the number of threads of each.

    Returns:
        What metrics.json holds, on rank 0.

    Raises:
        UserError: a model or the test set is not what its record says, or a model gives scores
            that are no numbers.
    """
    world = discover(ranks)
    training, manifest = read_training(results), read_manifest(data)
    averaged = read_averaged(results, training)
    run = training.configuration
    if world.local_rank == 0:  # a host's ranks read the same files
        check_trained_on(training, results, manifest, data)
        for file, record, expected, do in (
            ("model.safetensors", "train.json", training.model_sha256, "train again"),
            ("averaged.safetensors", "averaged.json", averaged.model_sha256, "`average` again"),
        ):
            check_sha256(results / file, expected, results / record, do)
        check_files(data, manifest, "test")
    if world.rank == 0:
        for file in OUTPUTS:
            sweep(results / file)
    device = devices.choose_device(world, run.device)
    determinism.pin(threads, device, reproducible=True)
    part = open_part(data / "test")
    normalize = Normalize(manifest.mean, manifest.std, device)
    model = build(run.model, manifest.shape, manifest.classes)
    move(model, device)
    rendezvous.start(world, device)
    chunks = -(-len(part) // CHUNK)
    mine = range(chunks * world.rank // world.size, chunks * (world.rank + 1) // world.size)
    found = {}
    for name, file in MODELS.items():
        state.load(model, results / file)
        found[name] = _predict(model.eval(), part, mine, normalize, run, device)
    everyone: list[Any] | None = [None] * world.size if world.rank == 0 else None
    dist.gather_object(found, everyone)
    rendezvous.stop()
    if everyone is None:
        return None

    labels = np.asarray(part.labels)
    predictions = pd.DataFrame({"sample": np.arange(len(labels)), "label": labels})
    metrics: dict[str, Any] = {"samples": len(labels)}
    confusions = []
    for name, file in MODELS.items():
        losses = np.concatenate([some[name][0] for some in everyone])
        if (wrong := np.flatnonzero(np.isnan(losses))).size:
            raise UserError(
                f"{results / file}: its scores of sample {wrong[0]} of the test set are no "
                f"numbers; train with a smaller lr, or with clip"
            )
        predicted = np.concatenate([some[name][1] for some in everyone])
        predictions[name] = predicted
        metrics[name], confusion = measure(labels, predicted, losses, manifest.class_names)
        confusions.append(confusion.assign(model=name))
    metrics |= {
        "model_sha256": training.model_sha256,
        "averaged_sha256": averaged.model_sha256,
        "snapshots_sha256": training.snapshots_sha256,
        "data_sha256": manifest.sha256,
    }
    for name, frame in (("predictions", predictions), ("confusion", pd.concat(confusions))):
        path = results / f"{name}.csv"
        with atomic(path) as draft:
            frame.to_csv(draft, index=False)
        metrics[f"{name}_sha256"] = sha256(path)
    write_json(results / "metrics.json", metrics)
    return metrics


def _predict(
    model: nn.Module,
    part: Part,
    chunks: range,
    normalize: Normalize,
    run: Run,
    device: torch.device,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the loss (float32) and the predicted class (int64) of each sample of some chunks."""
    losses, classes = [np.empty(0, np.float32)], [np.empty(0, np.int64)]
    with torch.inference_mode():
        for chunk in chunks:
            some = slice(chunk * CHUNK, (chunk + 1) * CHUNK)
            labels = torch.from_numpy(np.array(part.labels[some])).to(device)
            with autocast(run, device):
                scores = model(normalize(np.array(part.images[some]))).float()
            losses.append(functional.cross_entropy(scores, labels, reduction="none").cpu().numpy())
            classes.append(scores.argmax(dim=1).cpu().numpy())
    return np.concatenate(losses), np.concatenate(classes)


def measure(
    labels: np.ndarray, predicted: np.ndarray, losses: np.ndarray, names: list[str]
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Return a model's metrics, and its confusion matrix as a table (label, predicted, samples)."""
    from sklearn.metrics import confusion_matrix

    matrix = confusion_matrix(labels, predicted, labels=range(len(names)))
    right, of_class = np.diag(matrix), matrix.sum(axis=1)
    metrics = {
        "accuracy": int(right.sum()) / len(labels),
        "correct": int(right.sum()),
        "loss": float(losses.astype(np.float64).sum() / len(labels)),
        "per_class": {
            name: {"samples": int(n), "correct": int(k), "accuracy": int(k) / int(n)}
            for name, n, k in zip(names, of_class, right, strict=True)
        },
    }
    rows = [
        {"label": names[i], "predicted": names[j], "samples": int(matrix[i, j])}
        for i in range(len(names))
        for j in range(len(names))
    ]
    return metrics, pd.DataFrame(rows)
