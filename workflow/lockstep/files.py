"""Writing files so that nothing half-written is ever seen, and naming their content by hash."""

import contextlib
import hashlib
import json
import lzma
import os
import shutil
import struct
import tarfile
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# What readers raise when a file is damaged, or is something else.
DAMAGE = (
    *(OSError, EOFError, ValueError, TypeError, LookupError, AssertionError, RuntimeError),
    *(ArithmeticError, AttributeError, MemoryError, SyntaxError, tokenize.TokenError),
    *(struct.error, zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile),
)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have an OSError that does not say where, as that of a full disk, name `path`."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a name beside `path` to write to; on success it is synced to disk and becomes `path`.

    On any exception, Ctrl-C included, what was written is removed and `path` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        draft = folder / path.name
        with naming(path):
            yield draft
        draft.chmod(0o666 & ~_umask())  # some libraries leave files to their owner alone
        sync(draft)
        draft.replace(path)
        sync(path.parent)
    finally:
        for left in folder.iterdir():
            left.unlink()
        folder.rmdir()


def sweep(path: Path) -> None:
    """Remove what killed processes have left of writing `path`, when nobody is writing it."""
    for draft in path.parent.glob(f".{path.name}-*"):
        shutil.rmtree(draft, ignore_errors=True)


def sync(path: Path) -> None:
    """Have the system write a file, or a folder's list of names, to disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically."""
    with atomic(path) as draft:
        draft.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hex, as `sha256sum` prints it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
