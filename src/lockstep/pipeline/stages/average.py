"""average: the mean of a run's snapshots, or of its replicas. One process and files, no MPI.

Where a model has nothing but parameters, that is a matter of arrays, and torch is not loaded.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from lockstep.errors import UserError
from lockstep.files import atomic, sha256, sweep, write_json
from lockstep.pipeline.data.manifest import read_manifest
from lockstep.pipeline.model_file import KEY, metadata
from lockstep.pipeline.record import Training, check_trained_on, read_training
from lockstep.pipeline.snapshots import alike, find_snapshots, mean
from lockstep.strategies import catalogue

# What a file calls those types that NumPy has.
TYPES = ("BOOL", "U8", "I8", "I16", "I32", "I64", "F16", "F32", "F64")


def average(results: Path, data: Path, threads: int) -> dict[str, Any]:
    """Average the snapshots in `results`/snapshots to `results`/averaged.safetensors.

    Every floating-point weight becomes the mean of the snapshots' (Izmailov et al., "Averaging
    weights leads to wider optima", 2018), summed in float64 in the order of their names. Where the
    snapshots are local SGD's replicas, this is the one average that they get (Zinkevich et al.,
    "Parallelized stochastic gradient descent", 2010), along the tree, as it is while training.
    BatchNorm's statistics are those of other weights then, so they are computed again, over the
    training data in random order; those of a single snapshot and of frozen layers stay.

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
    one_shot = catalogue.of(training.configuration).one_shot
    plain = training.buffers_sha256 is None or len(paths) == 1
    if plain and not one_shot and _is_of_arrays(paths[0]):
        _check_model(results, training)
        write_mean(paths, output, metadata(training))
    else:
        from lockstep.pipeline.averaging import write_average  # with torch

        write_average(paths, output, data, training, manifest, threads)
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
    last, means = mean(
        alike(paths, _read),
        lambda value: value.astype(np.float64) if np.issubdtype(value.dtype, np.floating) else None,
    )
    with atomic(output) as draft:
        save_file(
            {n: means[n].astype(value.dtype) if n in means else value for n, value in last.items()},
            draft,
            about,
        )


def _is_of_arrays(path: Path) -> bool:
    """Return whether NumPy has the types of what is in a file: it has no bfloat16."""
    with _whole(path), safe_open(path, "numpy") as file:
        return all(file.get_slice(name).get_dtype() in TYPES for name in file.keys())  # noqa: SIM118


def _check_model(results: Path, training: Training) -> None:
    """Refuse weights that were trained as another model than the record names."""
    path = results / "model.safetensors"
    with _whole(path), safe_open(path, "numpy") as file:
        trained = json.loads((file.metadata() or {}).get(KEY, "{}")).get("model")
    if trained != training.configuration.model:
        raise UserError(
            f"{results / 'snapshots'}: not the weights of this model: {path.name} is of {trained}, "
            f"and train.json of {training.configuration.model}; train again"
        )


def _read(path: Path) -> dict[str, np.ndarray]:
    with _whole(path):
        return load_file(path)


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({error}); train again") from None
