"""Damage to files, as a power cut or a bad disk leaves it: for tests of what reads them."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lockstep.files import sealed, unsealed, write_json
from lockstep.pipeline.data.manifest import write_manifest
from lockstep.pipeline.record import SEAL


def change_manifest(data: Path, **changes: Any) -> None:
    """Give prepared data a manifest that is whole, and of other data."""
    record = json.loads((data / "manifest.json").read_text())
    del record["manifest_sha256"]
    write_manifest(data, record | changes)


def change_record(results: Path, **changes: Any) -> None:
    """Give a run a train.json that is whole, and says something else."""
    path = results / "train.json"
    write_json(path, sealed(unsealed(json.loads(path.read_text()), SEAL) | changes, SEAL))


@contextlib.contextmanager
def cut_short(path: Path, length: int) -> Iterator[None]:
    """Have a file end after `length` bytes while the context lasts."""
    whole = path.read_bytes()
    with restored(path, whole):
        path.write_bytes(whole[:length])
        yield


@contextlib.contextmanager
def flipped(path: Path, place: int, bits: int = 1) -> Iterator[None]:
    """Have some bits (1 to 255) of the byte at `place` flipped while the context lasts."""
    whole = path.read_bytes()
    with restored(path, whole):
        damaged = bytearray(whole)
        damaged[place] ^= bits
        path.write_bytes(damaged)
        yield


@contextlib.contextmanager
def removed(path: Path) -> Iterator[None]:
    """Have a file gone while the context lasts."""
    with restored(path, path.read_bytes()):
        path.unlink()
        yield


@contextlib.contextmanager
def restored(path: Path, content: bytes) -> Iterator[None]:
    """Write a file's content again at the end."""
    try:
        yield
    finally:
        path.write_bytes(content)
