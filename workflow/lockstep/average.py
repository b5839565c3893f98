"""average: the mean of a run's snapshots. No MPI, no rank: one process and files."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from lockstep import runtime, state
from lockstep.comm.world import discover
from lockstep.data.arrays import open_part
from lockstep.data.manifest import read_manifest
from lockstep.errors import UserError
from lockstep.files import sha256, write_json
from lockstep.models import build
from lockstep.objective import Normalize
from lockstep.provenance import read_run


def average(results: Path, data: Path, threads: int) -> dict[str, Any]:
    """Average the snapshots in `results`/snapshots to `results`/averaged.safetensors.

    Every floating-point weight becomes the mean of the snapshots' (Izmailov et al., "Averaging
    weights leads to wider optima", 2018), summed in float64 in the order of their names.
    BatchNorm's statistics are those of other weights then, so they are computed again, over the
    training data.

    Args:
        results: the run's folder; averaged.json is written there last.
        data: the folder of the prepared dataset.
        threads: the number of threads.

    Raises:
        UserError: there are no snapshots, or they differ in keys, shapes or types.
    """
    run = read_run(results)
    device = runtime.choose_device(discover(1), run.device)
    runtime.pin(threads, device, reproducible=True)
    paths = sorted((results / "snapshots").glob("*.safetensors"))
    if not paths:
        raise UserError(f"{results / 'snapshots'}: there is no snapshot in it; train again")
    mean = mean_state(paths)
    manifest = read_manifest(data)
    model = build(run.model, manifest.shape, manifest.classes)
    model.load_state_dict(mean)
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in model.modules()):
        images = open_part(data / "train").images
        normalize = Normalize(manifest.mean, manifest.std, device)
        # Whole batches, as in training: each counts alike, and one image may have no variance.
        starts = range(0, len(images) - run.batch + 1, run.batch)
        update_bn((normalize(np.array(images[s : s + run.batch])) for s in starts), model)
    state.save(model.state_dict(), results / "averaged.safetensors")
    record = {
        "snapshots": [path.name for path in paths],
        "model_sha256": sha256(results / "averaged.safetensors"),
    }
    write_json(results / "averaged.json", record)
    return record


def mean_state(paths: list[Path]) -> dict[str, torch.Tensor]:
    """Return the mean of the state_dicts in `paths`; what is not floating-point is the last one's.

    Raises:
        UserError: they differ in keys, shapes or types; the line names the file and the key.
    """
    first = state.read(paths[0])
    sums = {name: value.double() for name, value in first.items() if value.is_floating_point()}
    last = first
    for path in paths[1:]:
        last = state.read(path)
        odd = sorted(set(first) ^ set(last))
        if odd:
            raise UserError(f"{path}: key {odd[0]!r} is not in both it and {paths[0]}")
        for name, value in last.items():
            kinds = [f"{t.dtype} {tuple(t.shape)}" for t in (value, first[name])]
            if kinds[0] != kinds[1]:
                raise UserError(f"{path}: key {name!r} is {kinds[0]}, and {kinds[1]} in {paths[0]}")
            if name in sums:
                sums[name] += value.double()
    means = {name: (total / len(paths)).to(first[name].dtype) for name, total in sums.items()}
    return {name: means.get(name, value) for name, value in last.items()}
