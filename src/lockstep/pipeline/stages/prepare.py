"""prepare: decode a dataset into arrays that training can map into memory.

Everything that can be wrong with the data is found here, and named by file or index. Inputs go
through in blocks of a few MiB, however many there are and however large.
"""

import contextlib
import hashlib
import io
import json
import math
import os
import shutil
import sys
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from lockstep.errors import UserError, first_line, say
from lockstep.files import DAMAGE, atomic, naming, sha256, sweep, write_text
from lockstep.pipeline.config import Dataset
from lockstep.pipeline.data.decode import READERS
from lockstep.pipeline.data.folder import describe
from lockstep.pipeline.data.manifest import write_manifest
from lockstep.pipeline.data.sources import SOURCES
from lockstep.pipeline.data.split import PARTS
from lockstep.pipeline.data.stream import DOWNLOAD_AGAIN, Decoded, check_labels
from lockstep.pipeline.data.table import describe_images
from lockstep.pipeline.kinds import TASKS

# Bytes from which on it is said how many there will be.
SAID_FROM = 1e9
# How many classes are named at the end.
MOST_CLASSES = 10


def prepare(dataset: Dataset, output: Path, threads: int | None = None) -> dict[str, Any]:
    """Decode a dataset to `output`: train/, validation/ and test/, and manifest.json, last.

    Args:
        dataset: which one; its files lie in `output`/raw, or where the user has them.
        output: the folder that `download` wrote to. Where its sources.json is, the files must be
            those that it describes.
        threads: how many decode images; by default one for each core that this process may use.

    Raises:
        UserError: a file cannot be decoded or is not the one that was downloaded, images differ in
            shape, a label is out of range, a class is empty, or the disk has no room.
    """
    manifest = output / "manifest.json"
    manifest.unlink(missing_ok=True)  # it must not speak of other arrays
    first, *rest = (array.name for array in TASKS[dataset.task].arrays)
    for path in (manifest, *(output / p / f"{n}.npy" for p in PARTS for n in (first, *rest))):
        sweep(path)
    threads = threads or len(os.sched_getaffinity(0))
    if dataset.name != "imagefolder":  # which is read once only
        _check_sources(dataset, output)
    decoded = READERS[dataset.task, dataset.name](dataset, output / "raw", threads)
    record: dict[str, Any] = {"name": dataset.title, "task": dataset.task, **decoded.about}
    record |= {part: {"samples": decoded.samples[part]} for part in PARTS}
    if decoded.names:
        _describe_classes(decoded, dataset.title, record)
    _check_room(decoded, output)
    digests = _write_inputs(decoded, output, first, threads)
    if dataset.name in ("imagefolder", "table"):
        _check_sources(dataset, output, decoded.sums)
    record |= decoded.statistics.words()
    record["sha256"] = {}
    for part in PARTS:
        record["sha256"][f"{part}/{first}.npy"] = digests[part]
        for name in rest:
            path = output / part / f"{name}.npy"
            with atomic(path) as draft, draft.open("wb") as file:
                np.save(file, decoded.targets[part])
            record["sha256"][f"{part}/{name}.npy"] = sha256(path)
        if decoded.files:
            table = pd.DataFrame(decoded.files[part])
            path = output / part / "files.csv"
            write_text(path, table.to_csv(index=False))
            record.setdefault("lists_sha256", {})[f"{part}/files.csv"] = sha256(path)
    write_manifest(output, record)
    return record


def for_terminal(record: dict[str, Any]) -> str:
    """Return what a manifest says, in a line for a person."""
    kind = TASKS[record["task"]]
    shape = " x ".join(map(str, record["shape"]))
    count = len(record["classes"]) if kind.classes else record["outputs"]
    counts = [record[part]["samples"] for part in PARTS]
    samples = " + ".join(f"{n:,}" for n in counts if n)
    parts = "train + validation + test" if counts[1] else "train + test"
    line = f"{samples} {kind.unit} ({parts}) of {shape}, {count} {kind.counted}"
    if not kind.classes:
        return line
    totals = {
        name: sum(record[part]["per_class"][name] for part in PARTS) for name in record["classes"]
    }
    shown = ", ".join(f"{name} {total:,}" for name, total in [*totals.items()][:MOST_CLASSES])
    return f"{line}: {shown}" + (", …" if count > MOST_CLASSES else "")


def _describe_classes(decoded: Decoded, where: str, record: dict[str, Any]) -> None:
    """Check images and labels, and write down how many each class has."""
    for part in PARTS:
        targets = decoded.targets[part]
        check_labels(targets, decoded.names, f"{where}, {part}", whole=part != "validation")
        height, width, channels = decoded.shapes[part]
        if record["shape"] != [channels, height, width]:
            raise UserError(
                f"{where}: training images are {record['shape']}, those of {part} "
                f"{[channels, height, width]}"
            )
        counts = np.bincount(targets, minlength=len(decoded.names))
        record[part]["per_class"] = dict(zip(decoded.names, counts.tolist(), strict=True))


def _check_room(decoded: Decoded, output: Path) -> None:
    """Refuse what the disk has no room for, and say how large it will be."""
    size = sum(
        decoded.samples[part] * math.prod(decoded.shapes[part]) * decoded.dtype.itemsize
        for part in PARTS
    )
    output.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(output).free
    if size > free:
        raise UserError(
            f"{output}: the arrays take {size / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free; "
            f"take a smaller dataset.size, or make data/ a link to a larger disk"
        )
    if size > SAID_FROM:
        say(f"writing {size / 1e9:,.1f} GB to {output}")


def _check_sources(dataset: Dataset, output: Path, sums: Mapping[Path, str] | None = None) -> None:
    """Compare the dataset's files with what `download` wrote of them to `output`/sources.json.

    Args:
        sums: the SHA-256 of images that have been read. Of a table, those are compared then.

    Raises:
        UserError: a file is another one.
        OSError: a file is gone.
    """
    record = output / "sources.json"
    if not record.exists():  # the user prepares what the user has brought
        return
    if dataset.name == "function":
        return
    if dataset.path is not None:
        paths = [Path(dataset.path)]
    else:
        paths = [output / "raw" / name for name in SOURCES[dataset.name].files]
    images = dataset.name == "table" and sums is not None
    try:
        files = json.loads(record.read_text(encoding="utf-8"))["files"]
        about = {path: files[path.name]["images"] if images else files[path.name] for path in paths}
        expected = {path: str(about[path]["sha256"]) for path in paths}
        if images and not any(about[path]["files"] for path in paths):
            return  # the table has its images in it, and is not read again to find none
    except DAMAGE as error:
        why = first_line(error)
        raise UserError(
            f"{record}: does not describe the files of {dataset.title} ({why}){DOWNLOAD_AGAIN}"
        ) from None
    for path in paths:
        if images:
            found = describe_images(path, sums)["sha256"]
        else:
            found = describe(path, sums)["sha256"] if path.is_dir() else sha256(path)
        if found != expected[path]:
            has = "the listing of its images has" if images else "has"
            raise UserError(
                f"{path}: {has} SHA-256 {found[:12]}, and had {expected[path][:12]} when it was "
                f"downloaded or looked through{DOWNLOAD_AGAIN}"
            )


def _write_inputs(decoded: Decoded, output: Path, name: str, threads: int) -> dict[str, str]:
    """Write the rows of each part to `name`.npy, and return their files' SHA-256.

    A block is written, hashed and added up at once, while the next one is decoded.
    """
    with contextlib.ExitStack() as stack:
        files, digests, size = {}, {}, 0
        for part in PARTS:
            path = output / part / f"{name}.npy"
            files[part] = stack.enter_context(stack.enter_context(atomic(path)).open("wb"))
            shape = (decoded.samples[part], *decoded.shapes[part])
            size += math.prod(shape) * decoded.dtype.itemsize
            head = io.BytesIO()
            np.lib.format.write_array_header_1_0(
                head, {"descr": decoded.dtype.str, "fortran_order": False, "shape": shape}
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
        def write(part: str, rows: np.ndarray) -> None:
            with naming(output / part / f"{name}.npy"):
                files[part].write(rows.data)

        for part, some in decoded.rows:
            rows = np.ascontiguousarray(some)
            _wait(busy)
            busy = [
                pool.submit(write, part, rows),
                pool.submit(digests[part].update, rows.data),
                pool.submit(decoded.statistics.add, part, rows),
            ]
            bar.update(rows.nbytes)
        _wait(busy)
    return {part: digest.hexdigest() for part, digest in digests.items()}


def _wait(busy: list[Future]) -> None:
    for future in busy:
        future.result()
