"""What a prepared dataset is: its manifest.json, which `prepare` writes and the others read."""

import json
from dataclasses import dataclass
from pathlib import Path

from lockstep.errors import UserError
from lockstep.files import sha256


@dataclass(frozen=True)
class Manifest:
    """What a prepared dataset is: read from its manifest.json."""

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


def read_manifest(data: Path) -> Manifest:
    """Read the manifest of the prepared dataset in `data`.

    Raises:
        UserError: it is missing or damaged.
    """
    path = data / "manifest.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        channels, height, width = record["shape"]
        return Manifest(
            name=record["name"],
            shape=(channels, height, width),
            class_names=record["classes"],
            mean=record["mean"],
            std=record["std"],
            sha256=record["sha256"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a manifest ({error}); run `prepare` again") from None


def check_files(data: Path, manifest: Manifest, part: str) -> None:
    """Read the arrays of a part ("train" or "test") once, and compare them with the manifest.

    Raises:
        UserError: one is not what `prepare` wrote.
    """
    for file, expected in manifest.sha256.items():
        if file.startswith(f"{part}/") and (found := sha256(data / file)) != expected:
            raise UserError(
                f"{data / file}: has SHA-256 {found[:12]}, and had {expected[:12]} when it was "
                f"prepared; run `prepare` again, and what follows"
            )
