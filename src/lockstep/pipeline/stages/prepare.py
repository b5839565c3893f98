"""prepare: decode a dataset into arrays that training can map into memory.

Everything that can be wrong with images and labels is found here, and named by file or index.
Pixels go through in blocks of a few MiB, however many images there are and however large.
"""

import contextlib
import hashlib
import io
import json
import math
import os
import sys
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lockstep.errors import UserError, first_line
from lockstep.files import DAMAGE, atomic, naming, sha256, sweep
from lockstep.pipeline.config import Dataset
from lockstep.pipeline.data.arrays import Moments
from lockstep.pipeline.data.decode import DOWNLOAD_AGAIN, READERS, Decoded, check_labels
from lockstep.pipeline.data.folder import describe
from lockstep.pipeline.data.manifest import write_manifest
from lockstep.pipeline.data.sources import SOURCES

PARTS, ARRAYS = ("train", "test"), ("images", "labels")


def prepare(dataset: Dataset, output: Path, threads: int | None = None) -> dict[str, Any]:
    """Decode a dataset to `output`: train/ and test/ with their arrays, and manifest.json, last.

    Args:
        dataset: which one; its files lie in `output`/raw, or where the user has them.
        output: the folder that `download` wrote to. Where its sources.json is, the files must be
            those that it describes.
        threads: how many decode images; by default one for each core that this process may use.

    Raises:
        UserError: a file cannot be decoded or is not the one that was downloaded, images differ in
            shape, a label is out of range, or a class is empty.
    """
    manifest = output / "manifest.json"
    manifest.unlink(missing_ok=True)  # it must not speak of other arrays
    for path in (manifest, *(output / p / f"{n}.npy" for p in PARTS for n in ARRAYS)):
        sweep(path)
    threads = threads or len(os.sched_getaffinity(0))
    if dataset.name != "imagefolder":  # which is read once only
        _check_sources(dataset, output)
    decoded = READERS[dataset.name](dataset, output / "raw", threads)
    height, width, channels = decoded.shapes["train"]
    record: dict[str, Any] = {
        "name": dataset.id,
        "shape": [channels, height, width],
        "classes": decoded.names,
    }
    for part in PARTS:
        check_labels(decoded.labels[part], decoded.names, f"{dataset.id}, {part}")
        height, width, channels = decoded.shapes[part]
        if record["shape"] != [channels, height, width]:
            raise UserError(
                f"{dataset.id}: training images are {record['shape']}, test images "
                f"{[channels, height, width]}"
            )
        counts = np.bincount(decoded.labels[part], minlength=len(decoded.names))
        record[part] = {
            "samples": len(decoded.labels[part]),
            "per_class": dict(zip(decoded.names, counts.tolist(), strict=True)),
        }
    moments = Moments(channels)
    digests = _write_images(decoded, output, moments, threads)
    if dataset.name == "imagefolder":
        _check_sources(dataset, output, decoded.sums)
    record["mean"], record["std"] = moments.of_unit()
    record["sha256"] = {}
    for part in PARTS:
        path = output / part / "labels.npy"
        with atomic(path) as draft, draft.open("wb") as file:
            np.save(file, decoded.labels[part])
        record["sha256"] |= {
            f"{part}/images.npy": digests[part],
            f"{part}/labels.npy": sha256(path),
        }
    write_manifest(output, record)
    return record


def _check_sources(dataset: Dataset, output: Path, sums: Mapping[Path, str] | None = None) -> None:
    """Compare the dataset's files with what `download` wrote of them to `output`/sources.json.

    Args:
        sums: the SHA-256 of files that have been read already.

    Raises:
        UserError: a file is another one.
        OSError: a file is gone.
    """
    record = output / "sources.json"
    if not record.exists():  # the user prepares what the user has brought
        return
    if dataset.path is not None:
        paths = [Path(dataset.path)]
    else:
        paths = [output / "raw" / name for name in SOURCES[dataset.name].files]
    try:
        files = json.loads(record.read_text(encoding="utf-8"))["files"]
        expected = {path: str(files[path.name]["sha256"]) for path in paths}
    except DAMAGE as error:
        why = first_line(error)
        raise UserError(
            f"{record}: does not describe the files of {dataset.id} ({why}){DOWNLOAD_AGAIN}"
        ) from None
    for path in paths:
        found = describe(path, sums)["sha256"] if path.is_dir() else sha256(path)
        if found != expected[path]:
            raise UserError(
                f"{path}: has SHA-256 {found[:12]}, and had {expected[path][:12]} when it was "
                f"downloaded or looked through{DOWNLOAD_AGAIN}"
            )


def _write_images(decoded: Decoded, output: Path, moments: Moments, threads: int) -> dict[str, str]:
    """Write the images of each part, and return their files' SHA-256; `moments` gets those of the
    training images.

    A block is written, hashed and added up at once, while the next one is decoded.
    """
    with contextlib.ExitStack() as stack:
        files, digests, size = {}, {}, 0
        for part in PARTS:
            path = output / part / "images.npy"
            files[part] = stack.enter_context(stack.enter_context(atomic(path)).open("wb"))
            shape = (len(decoded.labels[part]), *decoded.shapes[part])
            size += math.prod(shape)
            head = io.BytesIO()
            np.lib.format.write_array_header_1_0(
                head, {"descr": "|u1", "fortran_order": False, "shape": shape}
            )
            digests[part] = hashlib.sha256(head.getvalue())
            files[part].write(head.getvalue())
        bar = stack.enter_context(
            tqdm(
                total=size, unit="B", unit_scale=True, leave=False, disable=not sys.stderr.isatty()
            )
        )
        # Left first, so that nothing is in the midst of being written when a file is closed.
        pool = stack.enter_context(ThreadPoolExecutor(min(3, threads)))
        busy: list[Future] = []

        # Written as a stream and not through a map: a full disk is an error then, not a signal.
        def write(part: str, pixels: np.ndarray) -> None:
            with naming(output / part / "images.npy"):
                files[part].write(pixels.data)

        for part, some in decoded.pixels:
            pixels = np.ascontiguousarray(some)
            _wait(busy)
            busy = [
                pool.submit(write, part, pixels),
                pool.submit(digests[part].update, pixels.data),
            ]
            if part == "train":
                busy.append(pool.submit(moments.add, pixels))
            bar.update(pixels.size)
        _wait(busy)
    return {part: digest.hexdigest() for part, digest in digests.items()}


def _wait(busy: list[Future]) -> None:
    for future in busy:
        future.result()
