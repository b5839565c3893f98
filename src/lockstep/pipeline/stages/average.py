"""average: the mean of a run's snapshots, or of its replicas. One process and files, no MPI."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from lockstep import tensors as state
from lockstep.errors import UserError
from lockstep.files import check_sha256, sha256, sweep, write_json
from lockstep.pipeline.data.arrays import open_part
from lockstep.pipeline.data.manifest import Manifest, check_files, read_manifest
from lockstep.pipeline.model_file import metadata
from lockstep.pipeline.models import build
from lockstep.pipeline.record import Training, check_trained_on, read_training
from lockstep.reduce.layout import move
from lockstep.reduce.tree import Node, fold, push
from lockstep.session import Session
from lockstep.strategies import catalogue


def average(results: Path, data: Path, threads: int) -> dict[str, Any]:
    """Average the snapshots in `results`/snapshots to `results`/averaged.safetensors.

    Every floating-point weight becomes the mean of the snapshots' (Izmailov et al., "Averaging
    weights leads to wider optima", 2018), summed in float64 in the order of their names. Where the
    snapshots are local SGD's replicas, this is the one average that they get (Zinkevich et al.,
    "Parallelized stochastic gradient descent", 2010), along the tree, as it is while training.
    BatchNorm's statistics are those of other weights then, so they are computed again, over the
    training data.

    Args:
        results: the run's folder; averaged.json is written there last.
        data: the folder of the prepared dataset.
        threads: the number of threads.

    Raises:
        UserError: the snapshots or the data are not those of the run, or the snapshots differ in
            keys, shapes or types.
    """
    for name in ("averaged.safetensors", "averaged.json"):
        sweep(results / name)
    training = read_training(results)
    manifest = read_manifest(data).seen_by(training.configuration)
    check_trained_on(training, results, manifest, data)
    device = training.configuration.device
    with Session(ranks=1, threads=threads, device=device, saves=False) as session:
        return _average_in(session, results, data, training, manifest)


def _average_in(
    session: Session, results: Path, data: Path, training: Training, manifest: Manifest
) -> dict[str, Any]:
    run, device = training.configuration, session.device
    paths = find_snapshots(results, training)
    mean = mean_replica(paths) if catalogue.of(run).one_shot else mean_state(paths)
    like = {name: tuple(value.shape) for name, value in mean.items()}
    model = build(run.model, manifest.shape, manifest.outputs, kind=manifest.kind, like=like)
    state.put(model, mean, results / "snapshots")
    move(model, device)
    if any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in model.modules()):
        from lockstep.pipeline.tasks.make import make  # loads pandas, for nothing else here

        check_files(data, manifest, "train")
        inputs = open_part(data / "train", manifest.kind).rows[0]
        task = make(run, manifest, device)
        # Whole batches, as in training: each counts alike, and one sample may have no variance.
        starts = range(0, manifest.samples["train"] - run.batch + 1, run.batch)
        batches = (inputs.read(slice(start, start + run.batch)) for start in starts)
        update_bn(map(task.normalize, batches), model)
    state.save(model.state_dict(), results / "averaged.safetensors", metadata(training))
    record = {
        "snapshots": [path.name for path in paths],
        "snapshots_sha256": training.snapshots_sha256,
        "model_sha256": sha256(results / "averaged.safetensors"),
    }
    write_json(results / "averaged.json", record)
    return record


def find_snapshots(results: Path, training: Training) -> list[Path]:
    """Return the paths of a run's snapshots in the order in which they were taken.

    Raises:
        UserError: one is missing, or is another one than was written, or there is one more.
    """
    folder, record = results / "snapshots", results / "train.json"
    # epoch-10000 comes after epoch-9999.
    names = sorted(training.snapshots, key=lambda name: (len(name), name))
    paths = [folder / name for name in names]
    if not paths:
        raise UserError(f"{record}: there is no snapshot in it; train again")
    run = training.configuration
    if catalogue.of(run).one_shot and len(paths) != run.shards:
        raise UserError(
            f"{record}: {len(paths)} replicas of {run.shards} shards are in it; train again"
        )
    for path in sorted(folder.glob("*.safetensors")):
        if path not in paths:
            raise UserError(f"{path}: no snapshot of the run in {record}; take it away")
    for path in paths:
        check_sha256(path, training.snapshots[path.name], record, "train again")
    return paths


def mean_state(paths: list[Path]) -> dict[str, torch.Tensor]:
    """Return the mean of the state_dicts in `paths`; what is not floating-point is the last one's.

    Raises:
        UserError: they differ in keys, shapes or types; the line names the file and the key.
    """
    last: dict[str, torch.Tensor] = {}
    sums: dict[str, torch.Tensor] = {}
    for last in _states(paths):
        for name, value in last.items():
            if value.is_floating_point():
                sums[name] = sums[name] + value.double() if name in sums else value.double()
    means = {name: (total / len(paths)).to(last[name].dtype) for name, total in sums.items()}
    return {name: means.get(name, value) for name, value in last.items()}


def mean_replica(paths: list[Path]) -> dict[str, torch.Tensor]:
    """Return the mean of the replicas in `paths`, a shard's each, summed along the tree.

    Raises:
        UserError: as `mean_state`.
    """
    last: dict[str, torch.Tensor] = {}
    stacks: dict[str, list[Node]] = {}
    for shard, last in enumerate(_states(paths)):
        for name, value in last.items():
            if value.is_floating_point():
                push(stacks.setdefault(name, []), Node(0, shard, value))
    means = {name: fold(stack) / len(paths) for name, stack in stacks.items()}
    return {name: means.get(name, value) for name, value in last.items()}


def _states(paths: list[Path]) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the state_dicts in `paths`, all of the same keys, shapes and types."""
    first: dict[str, torch.Tensor] = {}
    for path in paths:
        found = state.read(path)
        first = first or found
        odd = sorted(set(first) ^ set(found))
        if odd:
            raise UserError(f"{path}: key {odd[0]!r} is not in both it and {paths[0]}")
        for name, value in found.items():
            kinds = [f"{t.dtype} {tuple(t.shape)}" for t in (value, first[name])]
            if kinds[0] != kinds[1]:
                raise UserError(f"{path}: key {name!r} is {kinds[0]}, and {kinds[1]} in {paths[0]}")
        yield found
