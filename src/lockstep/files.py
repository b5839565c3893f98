"""Writing files so that nothing half-written is ever seen, and naming their content by hash."""

import contextlib
import errno
import hashlib
import io
import json
import lzma
import os
import shutil
import stat
import struct
import tarfile
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lockstep.errors import UserError, first_line

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
        draft.chmod(_mode(folder))  # some libraries leave files to their owner alone
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


def _mode(folder: Path) -> int:
    """Return the permissions that a new file in `folder` gets.

    The system is asked by making one: to read the umask is to change it, under every thread.
    """
    descriptor = os.open(folder / ".mode", os.O_CREAT | os.O_WRONLY, 0o666)
    try:
        return stat.S_IMODE(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically."""
    with atomic(path) as draft:
        draft.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` as indented JSON, atomically."""
    write_text(path, as_json(value))


def as_json(value: Any) -> str:
    """Return `value` as the text of a JSON file that a person may read."""
    return json.dumps(value, indent=2) + "\n"


def read_whole(path: Path) -> bytes:
    """Return what is in a file. One that is a pipe is an OSError: it may never come to an end."""
    with _opened(path) as file:
        return file.read()


def _opened(path: Path) -> io.BufferedReader:
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "is no file, but a folder, a pipe or a device", str(path))
    return path.open("rb")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hex, as `sha256sum` prints it.

    Raises:
        OSError: it cannot be read, or is no file.
    """
    with _opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_sha256(value: Any) -> str:
    """Return the SHA-256 of what JSON can hold, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def sealed(record: dict[str, Any], key: str) -> dict[str, Any]:
    """Return a record with the SHA-256 of its own content, under a key of its own."""
    return {**record, key: json_sha256(record)}


def unsealed(record: dict[str, Any], key: str) -> dict[str, Any]:
    """Return what `sealed` was given.

    Raises:
        ValueError: it is another one.
    """
    content = {name: value for name, value in record.items() if name != key}
    if record.get(key) != json_sha256(content):
        raise ValueError("it was changed after it was written")
    return content


def read_json(path: Path, what: str, do: str) -> dict[str, Any]:
    """Return the object that the JSON file `path` holds.

    Args:
        path: the file.
        what: what it should be, for the message.
        do: what to do where it is not, for the message.

    Raises:
        UserError: it is missing, cannot be read, or is not JSON of an object.
    """
    try:
        value = json.loads(read_whole(path).decode())
        if not isinstance(value, dict):
            raise ValueError(f"it is a {type(value).__name__}")
        return value
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else first_line(error)
    except RecursionError:
        why = "it is nested too deeply"
    raise UserError(f"{path}: not {what} ({why}); {do}")


def check_sha256(path: Path, expected: object, where: Path, do: str) -> None:
    """Refuse a file that is not the one that another file names by its SHA-256.

    Args:
        path: the file, which is read once.
        expected: its SHA-256 in hex.
        where: the file that says so, for the message.
        do: what to do, for the message.

    Raises:
        UserError: it is missing, or another one.
    """
    try:
        found = sha256(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; {do}") from None
    if found != expected:
        raise UserError(
            f"{path}: has SHA-256 {found[:12]}, not {str(expected)[:12]} as in {where}; {do}"
        )
