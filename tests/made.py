"""Folders of results as the stages leave them, with nothing trained: of any size, of any names."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from lockstep.files import sha256, write_json
from lockstep.pipeline import launch
from lockstep.pipeline.config import Run
from lockstep.pipeline.data.manifest import write_manifest
from lockstep.pipeline.kinds import CLASSIFICATION, REGRESSION
from lockstep.pipeline.record import (
    VERSION,
    Arithmetic,
    Best,
    Place,
    Segment,
    Training,
    write_training,
)
from lockstep.pipeline.tasks.classification import confusion, measure
from lockstep.pipeline.tasks.language import measure as measure_words
from lockstep.pipeline.tasks.regression import measure as measure_numbers

SAMPLES = 200
DIGITS = [f"{digit}" for digit in range(10)]


def write_data(
    folder: Path, classes: list[str], side: int = 8, shares: list[float] | None = None
) -> Path:
    """Write a prepared dataset's test part, with the labels that runs are made for: of each class
    as many, or its share."""
    random = np.random.default_rng(0)
    (folder / "test").mkdir(parents=True)
    labels = random.integers(0, len(classes), SAMPLES)
    if shares:
        labels = random.choice(len(classes), SAMPLES, p=shares)
    images = random.integers(0, 256, (SAMPLES, side, side, 3), np.uint8)
    np.save(folder / "test/images.npy", images)
    np.save(folder / "test/labels.npy", labels.astype(np.int64))
    record = {"name": "made", "task": "classification", "shape": [3, side, side]}
    record |= {"classes": classes, "mean": [0.5] * 3, "std": [0.5] * 3}
    files = [f"test/{name}.npy" for name in ("images", "labels")]
    record["sha256"] = {file: sha256(folder / file) for file in files}
    write_manifest(folder, record)
    return folder


def write_run(
    folder: Path,
    data: Path,
    run: Run | None = None,
    model: int = 0,
    wrong: int = 6,
    validated: bool = False,
    validation_loss: float | None = None,
    best: int | None = None,
    sent: int = 3_000_000,
) -> None:
    """Write what train and evaluate leave of a run on `data`, but for its models.

    Args:
        folder: the run's.
        data: what `write_data` wrote.
        run: its configuration.
        model: runs with the same number have the same bits.
        wrong: how many samples the last model has wrong; the averaged one has one less.
        validated: whether there is a validation part.
        validation_loss: what the models have on it; None: more where more is wrong.
        best: its best epoch.
        sent: the bytes that each rank has sent.
    """
    run = run or Run()
    folder.mkdir(parents=True)
    manifest = json.loads((data / "manifest.json").read_text())
    classes, labels = manifest["classes"], np.load(data / "test/labels.npy")
    random = np.random.default_rng(model)
    epochs = np.arange(1, run.epochs + 1)
    loss = 2.3 * np.exp(-epochs / (run.epochs / 8)) + 0.01 + random.random(run.epochs) * 1e-3
    history = pd.DataFrame({"epoch": epochs, "lr": 0.01, "loss": loss, "accuracy": 1 - loss / 3})
    if validated:
        history["validation_loss"] = loss + 0.05 + 0.002 * epochs
        history["validation_accuracy"] = 0.98 - loss / 3
    history["images_per_second"] = 2000 + 50 * random.standard_normal(run.epochs)
    parts = {"seconds": 1.0, "input_seconds": 0.05, "compute_seconds": 0.7}
    history = history.assign(**parts, communication_seconds=0.25, idle_seconds=0.1)
    history.to_csv(folder / "history.csv", index=False)

    found = {}
    order = random.permutation(SAMPLES)
    for name, count in (("last", wrong), ("averaged", max(wrong - 1, 0))):
        predicted = labels.copy()
        predicted[order[:count]] = (predicted[order[:count]] + 1) % len(classes)
        found[name] = predicted
    names = np.array(classes, dtype=object)
    table = {"sample": np.arange(SAMPLES), "label": names[labels]}
    table |= {name: names[predicted] for name, predicted in found.items()}
    sure = {f"p_{name}": (found["last"] == k) * 0.9 for k, name in enumerate(classes)}
    pd.DataFrame(table | sure).to_csv(folder / "predictions.csv", index=False)
    matrices = [confusion(labels, of, classes).assign(model=name) for name, of in found.items()]
    pd.concat(matrices).to_csv(folder / "confusion.csv", index=False)

    losses = np.full(SAMPLES, 0.1, np.float32)
    measured = {name: measure(labels, of, losses, classes) for name, of in found.items()}
    if validated:
        loss_there = 0.05 + wrong / 100 if validation_loss is None else validation_loss
        there = {name: of | {"loss": loss_there} for name, of in measured.items()}
        measured["validation"] = {"samples": SAMPLES} | there
    tables = {f"{name}_sha256": sha256(folder / f"{name}.csv") for name in CLASSIFICATION.tables}
    _write_records(folder, data, run, model, manifest, measured, tables, best, sent)


def write_numbers(folder: Path, data: Path, model: int = 0, off: float = 0.1) -> None:
    """Write what train and evaluate leave of a run that learns numbers."""
    folder.mkdir(parents=True)
    run, random = Run(epochs=6), np.random.default_rng(0)
    epochs = np.arange(1, 7)
    loss = 1.0 / epochs
    history = pd.DataFrame({"epoch": epochs, "lr": 0.01, "loss": loss, "rmse": loss**0.5})
    history = history.assign(mae=loss, samples_per_second=900.0, seconds=1.0)
    history.to_csv(folder / "history.csv", index=False)
    targets = random.standard_normal((50, 2)).astype(np.float32)
    noise = np.random.default_rng(model + 1).standard_normal((50, 2)).astype(np.float32)
    predicted = targets + np.float32(off) * noise
    samples = {"sample": np.repeat(np.arange(50), 2), "output": np.tile(np.arange(2), 50)}
    samples |= {"target": targets.ravel(), "last": predicted.ravel()}
    pd.DataFrame(samples | {"averaged": predicted.ravel()}).to_csv(
        folder / "predictions.csv", index=False
    )
    measured = dict.fromkeys(("last", "averaged"), measure_numbers(targets, predicted))
    tables = {f"{name}_sha256": sha256(folder / f"{name}.csv") for name in REGRESSION.tables}
    manifest = {"task": "regression", "classes": [], "sha256": {}, "shape": [4]}
    _write_records(folder, data, run, model, manifest, measured, tables)


def write_words(folder: Path, data: Path, model: int = 0) -> None:
    """Write what train and evaluate leave of a run that learns a language."""
    folder.mkdir(parents=True)
    loss = 3.0 / np.arange(1, 7)
    history = pd.DataFrame({"epoch": np.arange(1, 7), "lr": 0.01, "loss": loss})
    history = history.assign(perplexity=np.exp(loss), accuracy=0.5, sequences_per_second=9.0)
    history.assign(seconds=1.0).to_csv(folder / "history.csv", index=False)
    each = {"loss": np.tile([1.5, 2.5], 20), "correct": np.full(40, 2)}
    measured = measure_words(**each, tokens=np.full(40, 4))
    manifest = {"task": "language", "classes": [], "sha256": {}, "shape": [4]}
    run, both = Run(epochs=6, model="gpt"), dict.fromkeys(("last", "averaged"), measured)
    _write_records(folder, data, run, model, manifest, both, {})


def _write_records(
    folder, data, run, model, manifest, measured, tables, best=None, sent=3_000_000
) -> None:
    zero, same = "0" * 64, {"model_sha256": f"{model:064x}", "snapshots_sha256": "cd" * 32}
    part = Segment(first_step=0, last_step=60, started="", bytes_sent=[sent] * run.ranks)
    place = {"processor": "a processor", "device": "cpu", "host": "here"}
    training = Training(
        version=VERSION,
        configuration=run,
        dataset="made",
        task=manifest["task"],
        data_sha256=manifest["sha256"],
        classes=manifest["classes"],
        shape=manifest["shape"],
        outputs=max(len(manifest["classes"]), 1),
        image=None,
        data=str(data),
        mean=[],
        std=[],
        partition_sha256=zero,
        partition="shards.csv",
        partition_edited=False,
        initial_sha256=zero,
        parameters=5,
        trained_parameters=5,
        bfloat16_distance=None,
        launcher="python",
        backend="gloo",
        ranks=[Place(**place) for _ in range(run.ranks)],
        arithmetic=Arithmetic(libraries={}, caps={}),
        versions={"python": "3.11.7"},
        code={},
        git={"commit": "0123456789abcdef", "modified": False},
        best=Best(epoch=best, validation_loss=0.1) if best else None,
        stopped_early=False,
        parameters_sha256=f"{model:064x}",
        buffers_sha256=None,
        optimizer_sha256=f"{model:064x}",
        history_sha256=f"{model:064x}",
        history_csv_sha256=sha256(folder / "history.csv"),
        snapshots={},
        steps=60,
        images_per_second=2000.0,
        seconds=float(run.epochs),
        bytes_sent=part.bytes_sent,
        peak_memory=400_000_000,
        checkpoint_pauses={},
        started="2026-01-02T03:04:05+00:00",
        segments=[part],
        **same,
    )
    write_training(folder, training)
    averaged = f"{model + 1:064x}"
    snapshots = {"snapshots": [], "snapshots_sha256": same["snapshots_sha256"]}
    write_json(folder / "averaged.json", snapshots | {"model_sha256": averaged})
    said = {**measured, **same, **tables, "averaged_sha256": averaged}
    write_json(folder / "metrics.json", said)


def write_check(results: Path, run: Run, load: float = 0.1, cores: int = 4) -> None:
    """Write what check finds of a run's launch."""
    place = {"host": "here", "cores": cores, "load": load}
    check = {"ranks": [place] * run.ranks, "launcher": "mpirun", "mpi": "MPI", "system": "Linux"}
    name = results / "check" / f"{launch.world(run)}.json"
    write_json(name, check | {"backends": {"gloo": {"first_ms": 1, "median_ms": 0.5}}})


def write_progress(folder: Path, time: float, epochs: int = 3, **last: object) -> None:
    """Write the lines of a training that goes on, the last one cut short."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for epoch in range(1, epochs + 1):
        line = {"time": time - epochs + epoch, "run": folder.name, "epoch": epoch, "epochs": 9}
        line |= {"step": 10 * epoch, "steps": 90, "loss": 1 / epoch, "accuracy": 1 - 0.5 / epoch}
        line |= {"rate": 1500.0, "unit": "images", "seconds_left": 7.0, "state": "training"}
        lines += [json.dumps(line), json.dumps(line | {"event": "epoch"})]
    lines.append(json.dumps(line | last))
    (folder / "progress.jsonl").write_text("\n".join(lines) + '\n{"time": 1, "epo')
