"""The user's own folder: which files are in it, and what they are together.

What is hidden (`.git`, `.DS_Store`) is never data. Links are followed.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lockstep.errors import UserError
from lockstep.files import sha256

# Those that torchvision's ImageFolder reads, and others that cameras and the web have. What Pillow
# cannot read of them is named, and not passed over.
SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"),
    *(".jfif", ".gif", ".avif", ".heic", ".heif", ".jp2", ".jxl", ".tga"),
)


def files_below(folder: Path, above: tuple[tuple[int, int], ...] = ()) -> Iterator[Path]:
    """Yield every file below `folder`, at any depth.

    Args:
        above: the device and inode of each folder that this one is in.

    Raises:
        UserError: a link leads back to where it is, or something is no file that could be read.
        OSError: a folder cannot be read.
    """
    here = _identity(folder)
    if here in above:
        raise UserError(f"{folder}: is a link back to a folder that it is in; remove it")
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith("."):
            continue
        path = folder / entry.name
        if path.is_dir():
            yield from files_below(path, (*above, here))
        elif path.is_file():
            yield path
        else:  # to read from a fifo is to wait for ever
            raise UserError(
                f"{path}: is no file or folder, but a link to nothing, a fifo, a socket or a "
                f"device; remove it, or give it a name that begins with a dot"
            )


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def images_by_class(folder: Path) -> dict[str, list[Path]]:
    """Return the images of each class, which is a folder in `folder`: both in order of names.

    Raises:
        UserError: there is no class, a class has no image, or as `files_below`.
        OSError: a folder cannot be read.
    """
    found = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.is_dir():
            continue
        files = [
            file
            for file in files_below(path, (_identity(folder),))
            if file.name.lower().endswith(SUFFIXES)
        ]
        if not files:
            raise UserError(
                f"{folder}: class {path.name!r} has no image; expected names that end in "
                f"{', '.join(SUFFIXES)}"
            )
        found[path.name] = sorted(files, key=lambda file: (str(file.parent), file.name))
    if not found:
        raise UserError(f"{folder}: has no folder in it; expected one for each class")
    return found


def describe(root: Path, known: Mapping[Path, str] | None = None) -> dict[str, Any]:
    """Return how many files are below `root`, their bytes, and the SHA-256 of their listing.

    That is as `find -L . -name '.?*' -prune -o -type f -print | LC_ALL=C sort | xargs sha256sum |
    sha256sum` would have it.

    Args:
        known: the SHA-256 of files that have been read already.

    Raises:
        UserError, OSError: as `files_below`.
    """
    known = known or {}
    files = {os.fsencode(f"./{file.relative_to(root)}"): file for file in files_below(root)}
    listing = hashlib.sha256()
    for name in sorted(files):
        digest = known.get(files[name]) or sha256(files[name])
        listing.update(digest.encode() + b"  " + name + b"\n")
    return {
        "files": len(files),
        "bytes": sum(file.stat().st_size for file in files.values()),
        "sha256": listing.hexdigest(),
    }
