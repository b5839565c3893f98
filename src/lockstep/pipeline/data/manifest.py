"""What a prepared dataset is: its manifest.json, which `prepare` writes and the others read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lockstep.errors import UserError, first_line
from lockstep.files import DAMAGE, read_json, sealed, sha256, unsealed, write_json


@dataclass(frozen=True)
class Manifest:
    """What a prepared dataset is: read from its manifest.json.

    `sha256` is of the arrays, by file.
    """

    name: str
    shape: tuple[int, int, int]
    class_names: list[str]
    mean: list[float]
    std: list[float]
    sha256: dict[str, str]

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)


def write_manifest(data: Path, record: dict[str, Any]) -> None:
    """Write a dataset's manifest to the folder `data`, with a digest of its own content."""
    write_json(data / "manifest.json", sealed(record, "manifest_sha256"))


def read_manifest(data: Path) -> Manifest:
    """Read the manifest of the prepared dataset in `data`.

    Raises:
        UserError: it is missing, damaged, or not what `prepare` wrote.
    """
    path, what, do = data / "manifest.json", "a manifest", "run `prepare` again"
    record = read_json(path, what, do)
    try:
        record = unsealed(record, "manifest_sha256")
        channels, height, width = record["shape"]
        return Manifest(
            name=record["name"],
            shape=(channels, height, width),
            class_names=record["classes"],
            mean=record["mean"],
            std=record["std"],
            sha256=record["sha256"],
        )
    except DAMAGE as error:
        raise UserError(f"{path}: not {what} ({first_line(error)}); {do}") from None


def check_files(data: Path, manifest: Manifest, part: str) -> None:
    """Read the arrays of a part ("train" or "test") once, and compare them with the manifest.

    Args:
        part: a part, or one of its files alone ("train/labels.npy").

    Raises:
        UserError: one is not what `prepare` wrote.
    """
    for file, expected in manifest.sha256.items():
        if f"{file}/".startswith(f"{part}/") and (found := sha256(data / file)) != expected:
            raise UserError(
                f"{data / file}: has SHA-256 {found[:12]}, and had {expected[:12]} when it was "
                f"prepared; run `prepare` again, and what follows"
            )
