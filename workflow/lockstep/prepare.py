"""prepare: decode a dataset into arrays that training can map into memory.

Everything that can be wrong with images and labels is found here, and named by file or index.
"""

from pathlib import Path
from typing import Any

import numpy as np

from lockstep.config import Dataset
from lockstep.data.arrays import moments
from lockstep.data.decode import READERS, Decoded, check_labels
from lockstep.errors import UserError
from lockstep.files import atomic, sha256, write_json


def prepare(dataset: Dataset, output: Path) -> dict[str, Any]:
    """Decode a dataset to `output`: train/ and test/ with their arrays, and manifest.json, last.

    Args:
        dataset: which one; its files lie in `output`/raw, or where the user has them.
        output: the folder that `download` wrote to.

    Raises:
        UserError: a file cannot be decoded, images differ in shape, a label is out of range, or a
            class is empty.
    """
    (output / "manifest.json").unlink(missing_ok=True)  # it must not speak of other arrays
    names, parts = READERS[dataset.name](dataset, output / "raw")
    record: dict[str, Any] = {"name": dataset.id, "shape": None, "classes": names}
    for part, decoded in parts.items():
        check_labels(decoded.labels, names, f"{dataset.id}, {part}")
        height, width, channels = decoded.shape
        shape = [channels, height, width]
        if record["shape"] not in (None, shape):
            raise UserError(
                f"{dataset.id}: training images are {record['shape']}, test images {shape}"
            )
        record["shape"] = shape
        counts = np.bincount(decoded.labels, minlength=len(names))
        record[part] = {
            "samples": len(decoded.labels),
            "per_class": dict(zip(names, counts.tolist(), strict=True)),
        }
        _write(decoded, output / part)
    images = np.load(output / "train" / "images.npy", mmap_mode="r")
    record["mean"], record["std"] = moments(images)
    files = [f"{part}/{name}.npy" for part in parts for name in ("images", "labels")]
    record["sha256"] = {file: sha256(output / file) for file in files}
    write_json(output / "manifest.json", record)
    return record


def _write(decoded: Decoded, folder: Path) -> None:
    count = len(decoded.labels)
    # Written as a stream and not through a map: a full disk is an error then, not a signal.
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, *decoded.shape)}
    with atomic(folder / "images.npy") as draft, draft.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for chunk in decoded.chunks:
            file.write(np.ascontiguousarray(chunk, np.uint8).data)
    with atomic(folder / "labels.npy") as draft, draft.open("wb") as file:
        np.save(file, decoded.labels.astype(np.int64))
