"""The average of models that have more than parameters: of BatchNorm, and of replicas."""

from pathlib import Path

import torch
from torch import nn

from lockstep import random as streams
from lockstep import tensors as state
from lockstep.pipeline.data.arrays import open_part
from lockstep.pipeline.data.manifest import Manifest, check_files
from lockstep.pipeline.model_file import metadata
from lockstep.pipeline.models import build
from lockstep.pipeline.models.pretrained import freeze, head_of
from lockstep.pipeline.record import Training
from lockstep.pipeline.snapshots import alike, mean
from lockstep.reduce.layout import move
from lockstep.reduce.tree import Node, fold, push
from lockstep.session import Session
from lockstep.strategies import catalogue


def write_average(
    paths: list[Path],
    output: Path,
    data: Path,
    training: Training,
    manifest: Manifest,
    threads: int,
) -> None:
    """Write the average of a run's snapshots, BatchNorm's statistics computed again.

    Args:
        paths: the snapshots, in the order in which they were taken.
        output: the file to write.
        data: the folder of the prepared dataset.
        training: the run.
        manifest: what the data are.
        threads: the number of threads.

    Raises:
        UserError: the data are not those of the run, or the snapshots differ in keys, shapes or
            types.
    """
    run = training.configuration
    with Session(ranks=1, threads=threads, device=run.device, saves=False) as session:
        averaged = mean_replica(paths) if catalogue.of(run).one_shot else mean_state(paths)
        like = {name: tuple(value.shape) for name, value in averaged.items()}
        model = build(run.model, manifest.shape, manifest.outputs, kind=manifest.kind, like=like)
        state.put(model, averaged, paths[0].parent)
        move(model, session.device)
        if run.freeze is not None:
            freeze(model, run.freeze, head_of(model, manifest.outputs))
        model.train()
        norms = [
            layer
            for layer in model.modules()
            if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.training
        ]
        # One snapshot is its own mean, and has the statistics of its weights.
        if len(paths) > 1 and norms:
            from lockstep.pipeline.tasks.make import make  # loads pandas, for nothing else here

            check_files(data, manifest, "train")
            inputs = open_part(data / "train", manifest.kind).rows[0]
            task = make(run, manifest, session.device)
            # Whole batches of samples at random, as in training: each counts alike, one sample may
            # have no variance, and files are often sorted by class, whose means differ.
            order = streams.permutation(manifest.samples["train"], "average", run.seed)
            batch = min(run.batch, len(order))  # which has some samples twice, if it is balanced
            whole = order[: len(order) // batch * batch].reshape(-1, batch)
            for layer in norms:
                layer.reset_running_stats()
                layer.momentum = None  # all batches count alike
            with torch.no_grad():
                for some in whole:
                    task.forward(model, task.normalize(inputs.read(some)))
        state.save(model.state_dict(), output, metadata(training))


def mean_state(paths: list[Path]) -> dict[str, torch.Tensor]:
    """Return the mean of the state_dicts in `paths`; what is not floating-point is the last one's.

    Raises:
        UserError: they differ in keys, shapes or types; the line names the file and the key.
    """
    last, means = mean(
        alike(paths, state.read),
        lambda value: value.double() if value.is_floating_point() else None,
    )
    return {n: means[n].to(value.dtype) if n in means else value for n, value in last.items()}


def mean_replica(paths: list[Path]) -> dict[str, torch.Tensor]:
    """Return the mean of the replicas in `paths`, a shard's each, summed along the tree.

    Raises:
        UserError: as `mean_state`.
    """
    last: dict[str, torch.Tensor] = {}
    stacks: dict[str, list[Node]] = {}
    for shard, last in enumerate(alike(paths, state.read)):
        for name, value in last.items():
            if value.is_floating_point():
                push(stacks.setdefault(name, []), Node(0, shard, value))
    means = {name: fold(stack) / len(paths) for name, stack in stacks.items()}
    return {name: means.get(name, value) for name, value in last.items()}
