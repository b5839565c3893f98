"""A table of images: a CSV file, a Parquet file, or a folder of Parquet files.

Its columns are `path` (of an image, relative to the table) and `label`, and, if there is one,
`split` (train, validation or test). Parquet may have the images themselves, in a column `image`, as
Hugging Face writes them.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lockstep.errors import UserError, first_line
from lockstep.files import sha256
from lockstep.pipeline.data.folder import files_below
from lockstep.pipeline.data.split import WORDS, of_names
from lockstep.pipeline.data.stream import number_classes

# Rows of images that are in memory at once.
ROWS = 64


@dataclass(frozen=True)
class Rows:
    """A table as it was read.

    Args:
        names: of the classes: in order of numbers, if all are, or of letters.
        labels: int64, N.
        which: the part of each row (uint8, N), if the table says.
        groups: the group of each row (N), if one was asked for.
        sources: gives each row's image in turn: its file, or what would be in it.
        files: what to call each of them.
    """

    names: list[str]
    labels: np.ndarray
    which: np.ndarray | None
    groups: np.ndarray | None
    sources: Callable[[], Iterator[bytes | Path]]
    files: list[str]


def read(path: Path, group: str | None) -> Rows:
    """Read a table, but for the images that are in it.

    Args:
        path: the file or, of Parquet files, their folder.
        group: the column of groups.

    Raises:
        UserError: it is none, or a column is missing.
    """
    if path.suffix.lower() == ".csv" and not path.is_dir():
        return _of_csv(path, group)
    if path.is_dir():
        if not (files := [file for file in files_below(path) if file.suffix == ".parquet"]):
            raise UserError(f"{path}: has no .parquet file in it")
        return _of_parquet(path, files, group)
    return _of_parquet(path.parent, [path], group)


def describe_images(path: Path, known: Mapping[Path, str] | None = None) -> dict[str, Any]:
    """Return how many files a table names, and the SHA-256 of what `sha256sum` lists of them.

    A file that cannot be read is listed without a sum: `prepare` refuses or skips it.

    Args:
        path: the table, as in `read`.
        known: the SHA-256 of files that have been read already.

    Raises:
        UserError: as `read`.
    """
    files = {source for source in read(path, None).sources() if isinstance(source, Path)}
    listing = hashlib.sha256()
    for file in sorted(files):
        try:
            digest = (known or {}).get(file) or (sha256(file) if file.is_file() else "")
        except OSError:
            digest = ""
        listing.update(digest.encode() + b"  " + os.fsencode(file) + b"\n")
    return {"files": len(files), "sha256": listing.hexdigest()}


def _of_csv(path: Path, group: str | None) -> Rows:
    import pandas as pd

    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as a table: {first_line(error)}") from None
    columns = {str(name): frame[name].to_numpy() for name in frame}
    _want(path, columns, "path", "label", *([group] if group else []))
    return _rows(path, path.parent, columns, columns["label"], None, group)


def _of_parquet(root: Path, files: list[Path], group: str | None) -> Rows:
    parquet = _parquet()
    columns: dict[str, list[Any]] = {}
    splits = [_split_of(file.relative_to(root)) for file in files]
    named: list[list[str] | None] = []
    image, counts = "", list[int]()
    for file in files:
        try:
            with parquet.ParquetFile(file) as opened:
                schema = opened.schema_arrow
                image = next((n for n in ("image", "bytes", "img") if n in schema.names), "")
                wanted = ["path", "label", "split", *([group] if group else [])]
                small = [name for name in wanted if name in schema.names]
                part = opened.read(columns=small).to_pydict()
                named.append(_class_labels(schema.metadata))
                counts.append(opened.metadata.num_rows)
        except (OSError, ValueError) as error:
            raise UserError(f"{file}: not a Parquet file: {first_line(error)}") from None
        for name in small:
            columns.setdefault(name, []).extend(part[name])
    for file, names in zip(files, named, strict=True):
        if names != named[0]:  # a number would be of one class here, and of another there
            raise UserError(
                f"{file}: the classes that its schema names are not those of {files[0]}; expected "
                f"the same names in the same order, or none, in all files: write both anew"
            )
    for name, values in columns.items():
        if len(values) != sum(counts):
            raise UserError(f"{root}: the column {name!r} is not in all of its {len(files)} files")
    found = {
        name: np.array(["" if value is None else str(value) for value in values])
        for name, values in columns.items()
    }
    if "split" not in found and len(set(splits)) > 1:
        if "" in splits:  # where it belongs nobody knows, and it might be trained and tested on
            known = next(n for n, split in enumerate(splits) if split)
            raise UserError(
                f"{files[splits.index('')]}: neither its name nor its folder says which part it "
                f"is, as that of {files[known]} does ({splits[known]}); expected train, validation "
                f"or test as the first word of each file's name, or as its folder"
            )
        found["split"] = np.repeat(splits, counts)
    _want(files[0], found, *([] if image else ["path"]), "label", *([group] if group else []))
    if not image:
        return _rows(files[0], root, found, found["label"], named[0], group)

    def sources() -> Iterator[bytes | Path]:
        for file in files:
            with parquet.ParquetFile(file) as opened:
                for batch in opened.iter_batches(ROWS, columns=[image]):
                    for value in batch.column(0).to_pylist():
                        yield _content(value, root)

    places = [file.relative_to(root).as_posix() for file in files]
    counted = zip(places, counts, strict=True)
    found["path"] = np.array([f"{place}:{row}" for place, n in counted for row in range(n)])
    rows = _rows(files[0], root, found, found["label"], named[0], group)
    return replace(rows, sources=sources)


def _rows(
    path: Path,
    root: Path,
    columns: dict[str, np.ndarray],
    labels: np.ndarray,
    named: list[str] | None,
    group: str | None,
) -> Rows:
    if not len(labels):
        raise UserError(f"{path}: has no rows")
    if (empty := np.flatnonzero(labels == "")).size:
        raise UserError(f"{path}: row {empty[0] + 1} has no label")
    if named:  # numbers of classes that the table has names for
        try:
            numbers = labels.astype(np.int64)
        except ValueError as error:
            raise UserError(
                f"{path}: label: {first_line(error)}; expected the number of one of the classes "
                f"that its schema names"
            ) from None
        if numbers.min() < 0 or numbers.max() >= len(named):
            wrong = int(np.flatnonzero((numbers < 0) | (numbers >= len(named)))[0])
            raise UserError(
                f"{path}: row {wrong + 1}: label {numbers[wrong]}, expected 0 to {len(named) - 1}"
            )
        names = named
    else:
        names, numbers = number_classes(labels.tolist())
    files = columns["path"].tolist()
    which = of_names(columns["split"], str(path)) if "split" in columns else None
    if which is not None and not (which == 0).any():
        raise UserError(f"{path}: no row has train in the column split")
    return Rows(
        names,
        numbers,
        which,
        columns[group] if group else None,
        lambda: (root / file for file in files),
        files,
    )


def _want(path: Path, columns: dict[str, Any], *names: str) -> None:
    for name in names:
        if name not in columns:
            has = ", ".join(columns) or "none of those that are known"
            raise UserError(f"{path}: has no column {name!r}; it has {has}")


def _content(value: Any, root: Path) -> bytes | Path:
    """Return the image of a cell: bytes, or a struct that has `bytes` or `path`."""
    if isinstance(value, dict):
        if value.get("bytes"):
            value = value["bytes"]
        elif value.get("path"):
            return root / value["path"]
    return value if isinstance(value, bytes) else b""


def _class_labels(metadata: dict[bytes, bytes] | None) -> list[str] | None:
    """Return the names of the classes that Hugging Face's datasets write into a schema."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return [str(name) for name in features["label"]["names"]]
    except (KeyError, TypeError, ValueError):
        return None


def _split_of(file: Path) -> str:
    """Return the split that a file is of, by its name (`train-00000-of-00001.parquet`) or that of a
    folder (`train/0000.parquet`)."""
    first = file.name.lower().replace("_", "-").replace(".", "-").partition("-")[0]
    around = [folder.lower() for folder in reversed(file.parts[:-1])]
    return next((word for word in (first, *around) if word in WORDS), "")


def _parquet() -> Any:
    try:
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise UserError(
            "dataset.path: Parquet is read by pyarrow, which is not installed; pip install pyarrow"
        ) from None
    return parquet
