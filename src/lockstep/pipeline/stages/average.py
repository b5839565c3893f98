"""average: the mean of a run's snapshots, or of its replicas. One process and files, no MPI.

Where a model has nothing but parameters, that is a matter of arrays, and torch is not loaded.
"""

from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from lockstep.errors import UserError
from lockstep.files import atomic, sha256, sweep, write_json
from lockstep.pipeline.data.manifest import read_manifest
from lockstep.pipeline.model_file import metadata
from lockstep.pipeline.record import check_trained_on, read_training
from lockstep.pipeline.snapshots import alike, find_snapshots
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
    paths, output = find_snapshots(results, training), results / "averaged.safetensors"
    if training.buffers_sha256 or catalogue.of(training.configuration).one_shot:
        from lockstep.pipeline.averaging import write_average  # with torch

        write_average(paths, output, data, training, manifest, threads)
    else:
        write_mean(paths, output, metadata(training))
    record = {
        "snapshots": [path.name for path in paths],
        "snapshots_sha256": training.snapshots_sha256,
        "model_sha256": sha256(output),
    }
    write_json(results / "averaged.json", record)
    return record


def write_mean(paths: list[Path], output: Path, about: dict[str, str]) -> None:
    """Write the mean of the arrays in `paths`; what is not floating-point is the last one's.

    Raises:
        UserError: they differ in keys, shapes or types; the line names the file and the key.
    """
    last: dict[str, np.ndarray] = {}
    sums: dict[str, np.ndarray] = {}
    for last in alike(paths, _read):
        for name, value in last.items():
            if np.issubdtype(value.dtype, np.floating):
                exact = value.astype(np.float64)
                sums[name] = sums[name] + exact if name in sums else exact
    means = {name: (total / len(paths)).astype(last[name].dtype) for name, total in sums.items()}
    with atomic(output) as draft:
        save_file({name: means.get(name, value) for name, value in last.items()}, draft, about)


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({error}); train again") from None
