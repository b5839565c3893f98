"""evaluate: how good the trained and the averaged model are on the test set, and on the validation
part where there is one.

The numbers are the same at any number of ranks (`lockstep.pipeline.tasks.validation` tells why).
What is measured is the task's affair.
"""

from pathlib import Path
from typing import Any

import numpy as np

from lockstep import tensors as state
from lockstep.files import atomic, check_sha256, sha256, sweep, write_json
from lockstep.pipeline.data.arrays import open_part, read_files
from lockstep.pipeline.data.manifest import Manifest, check_files, read_manifest
from lockstep.pipeline.kinds import MODELS
from lockstep.pipeline.models import build
from lockstep.pipeline.record import (
    Averaged,
    Training,
    check_trained_on,
    read_averaged,
    read_training,
)
from lockstep.pipeline.tasks.make import make
from lockstep.pipeline.tasks.validation import score
from lockstep.reduce.layout import move
from lockstep.session import Session


def evaluate(results: Path, data: Path, ranks: int | None, threads: int) -> dict[str, Any] | None:
    """Write the task's tables (predictions.csv, confusion.csv) and, last, metrics.json.

    Args:
        results: the run's folder, with the two models.
        data: the folder of the prepared dataset.
        ranks: the number of processes; None takes as many as there are.
        threads: the number of threads of each.

    Returns:
        What metrics.json holds, on rank 0.

    Raises:
        UserError: a model or the test set is not what its record says, or a model gives what is no
            number.
    """
    training = read_training(results)
    manifest = read_manifest(data).seen_by(training.configuration)
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
        for name in ("test", "validation"):
            check_files(data, manifest, name)
    if world.rank == 0:
        for file in (*(f"{table}.csv" for table in manifest.kind.tables), "metrics.json"):
            sweep(results / file)
    task = make(run, manifest, device)
    like = state.shapes(results / "model.safetensors")
    model = build(run.model, manifest.shape, manifest.outputs, kind=manifest.kind, like=like)
    move(model, device)
    test = open_part(data / "test", manifest.kind)
    validation = None
    if manifest.samples.get("validation"):
        validation = open_part(data / "validation", manifest.kind)
    found: dict[str, Any] = {}
    validated: dict[str, Any] = {}
    for name, file in MODELS.items():
        state.load(model, results / file)
        path, detail = results / file, name == "last"
        found[name] = score(model.eval(), test, task, world, (path, "test set"), detail)
        if validation:
            where = path, "validation part"
            validated[name] = score(model, validation, task, world, where)
    session.close()
    if world.rank:
        return None

    targets = np.asarray(test.targets)
    metrics: dict[str, Any] = {"samples": len(test)}
    metrics |= {name: task.measure(targets, of) for name, of in found.items()}
    metrics["validation"] = None
    if validation:
        metrics["validation"] = {"samples": len(validation)} | {
            name: task.measure(np.asarray(validation.targets), of) for name, of in validated.items()
        }
    tables = task.tables(targets, found, read_files(data / "test"))
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
