"""evaluate: how good the trained and the averaged model are on the test set.

The test set is cut into chunks of a fixed size, and each rank takes a block of them: no sample is
counted twice, every kernel sees the same shapes at any number of ranks, and rank 0 adds up the
samples' losses in their own order. So the numbers are the same at any number of ranks. What is
measured is the task's affair.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from lockstep import tensors as state
from lockstep.errors import UserError
from lockstep.files import atomic, check_sha256, sha256, sweep, write_json
from lockstep.pipeline.data.arrays import Part, open_part
from lockstep.pipeline.data.manifest import Manifest, check_files, read_manifest
from lockstep.pipeline.models import build
from lockstep.pipeline.record import (
    Averaged,
    Training,
    check_trained_on,
    read_averaged,
    read_training,
)
from lockstep.pipeline.tasks.make import make
from lockstep.pipeline.tasks.supervised import Supervised
from lockstep.reduce.layout import move
from lockstep.session import Session

MODELS = {"last": "model.safetensors", "averaged": "averaged.safetensors"}


def evaluate(results: Path, data: Path, ranks: int, threads: int) -> dict[str, Any] | None:
    """Write the task's tables (predictions.csv, confusion.csv) and, last, metrics.json.

    Args:
        results: the run's folder, with the two models.
        data: the folder of the prepared dataset.
        ranks: the number of processes.
        threads: the number of threads of each.

    Returns:
        What metrics.json holds, on rank 0.

    Raises:
        UserError: a model or the test set is not what its record says, or a model gives what is no
            number.
    """
    training, manifest = read_training(results), read_manifest(data)
    averaged = read_averaged(results, training)
    device = training.configuration.device
    with Session(ranks=ranks, threads=threads, device=device, saves=False) as session:
        return _evaluate_in(session, results, data, training, averaged, manifest)


def _evaluate_in(
    session: Session,
    results: Path,
    data: Path,
    training: Training,
    averaged: Averaged,
    manifest: Manifest,
) -> dict[str, Any] | None:
    world, device, run = session.world, session.device, training.configuration
    if world.local_rank == 0:  # a host's ranks read the same files
        check_trained_on(training, results, manifest, data)
        for file, record, expected, do in (
            ("model.safetensors", "train.json", training.model_sha256, "train again"),
            ("averaged.safetensors", "averaged.json", averaged.model_sha256, "`average` again"),
        ):
            check_sha256(results / file, expected, results / record, do)
        check_files(data, manifest, "test")
    if world.rank == 0:
        for file in (*(f"{table}.csv" for table in manifest.kind.tables), "metrics.json"):
            sweep(results / file)
    part = open_part(data / "test", manifest.kind)
    task = make(run, manifest, device)
    model = build(run.model, manifest.shape, manifest.outputs, kind=manifest.kind)
    move(model, device)
    chunks = -(-len(part) // task.chunk)
    mine = range(chunks * world.rank // world.size, chunks * (world.rank + 1) // world.size)
    found = {}
    for name, file in MODELS.items():
        state.load(model, results / file)
        found[name] = _predict(model.eval(), part, mine, task)
    everyone: list[Any] | None = [None] * world.size if world.rank == 0 else None
    dist.gather_object(found, everyone)
    session.close()
    if everyone is None:
        return None

    joined = {name: _join([some[name] for some in everyone]) for name in MODELS}
    for name, file in MODELS.items():
        if (wrong := np.flatnonzero(np.isnan(joined[name]["loss"]))).size:
            raise UserError(
                f"{results / file}: its scores of sample {wrong[0]} of the test set are no "
                f"numbers; train with a smaller lr, or with clip"
            )
    of_models, tables = task.evaluate(np.asarray(part.targets), joined)
    metrics: dict[str, Any] = {"samples": len(part), **of_models}
    metrics |= {
        "model_sha256": training.model_sha256,
        "averaged_sha256": averaged.model_sha256,
        "snapshots_sha256": training.snapshots_sha256,
        "data_sha256": manifest.sha256,
    }
    for name, frame in tables.items():
        path = results / f"{name}.csv"
        with atomic(path) as draft:
            frame.to_csv(draft, index=False)
        metrics[f"{name}_sha256"] = sha256(path)
    write_json(results / "metrics.json", metrics)
    return metrics


def _predict(
    model: nn.Module, part: Part, chunks: range, task: Supervised
) -> list[dict[str, np.ndarray]]:
    """Return what the task wants to know of the samples of each of some chunks."""
    found = []
    with torch.inference_mode():
        for chunk in chunks:
            some = slice(chunk * task.chunk, (chunk + 1) * task.chunk)
            targets = task.to_targets(np.array(part.targets[some]))
            outputs = task.forward(model, task.normalize(np.array(part.inputs[some]))).float()
            found.append(task.predict(outputs, targets))
    return found


def _join(ranks: list[list[dict[str, np.ndarray]]]) -> dict[str, np.ndarray]:
    """Return what ranks found of their chunks, in the order of the samples."""
    chunks = [chunk for some in ranks for chunk in some]
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
