"""What a prepared dataset is: its manifest.json, which `prepare` writes and the others read."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lockstep.errors import UserError, first_line
from lockstep.files import DAMAGE, read_json, sealed, sha256, unsealed, write_json
from lockstep.pipeline.config import Run
from lockstep.pipeline.data.split import PARTS
from lockstep.pipeline.kinds import TASKS, Kind

# Of the training images' channels, as torchvision's weights were trained with.
IMAGENET_MEAN = [0.485, 0.456, 0.406]
IMAGENET_STD = [0.229, 0.224, 0.225]


@dataclass(frozen=True)
class Manifest:
    """What a prepared dataset is: read from its manifest.json.

    `shape` is that of what a model gets of a sample, and `outputs` how many classes, targets or
    tokens there are. Channels of inputs have `mean` and `std`, tokens have none. `sha256` is of the
    arrays, by file, and `lists` that of the files.csv of photos. `samples` says how many each part
    has, and `counts` how many of the training samples each class has. `image` is how images of any
    size were brought to one, where that was done.
    """

    name: str
    task: str
    shape: tuple[int, ...]
    outputs: int
    class_names: list[str]
    mean: list[float]
    std: list[float]
    sha256: dict[str, str]
    samples: dict[str, int]
    counts: list[int]
    image: dict[str, Any] | None = None
    lists: dict[str, str] = field(default_factory=dict)

    def seen_by(self, run: Run) -> "Manifest":
        """Return what a run trains on: with the mean and deviation that its weights want.

        Raises:
            UserError: those are of colours, and the images are not.
        """
        if not run.imagenet:
            return self
        if self.task != "classification" or self.shape[0] != 3:
            raise UserError(
                f"normalize: imagenet is for images of 3 channels, not {self.shape}; set "
                f"dataset.colour to rgb, or normalize to data"
            )
        return replace(self, mean=IMAGENET_MEAN, std=IMAGENET_STD)

    @property
    def kind(self) -> Kind:
        """What is learned from it."""
        return TASKS[self.task]


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
        names = record.get("classes", [])
        return Manifest(
            name=record["name"],
            task=TASKS[record["task"]].name,
            shape=tuple(map(int, record["shape"])),
            outputs=int(record.get("outputs", len(names))),
            class_names=names,
            mean=record["mean"],
            std=record["std"],
            sha256=record["sha256"],
            samples={part: int(record.get(part, {}).get("samples", 0)) for part in PARTS},
            counts=list(record.get("train", {}).get("per_class", {}).values()),
            image=record.get("image"),
            lists=record.get("lists_sha256", {}),
        )
    except DAMAGE as error:
        raise UserError(f"{path}: not {what} ({first_line(error)}); {do}") from None


def check_files(data: Path, manifest: Manifest, part: str) -> None:
    """Read the files of a part once, and compare them with the manifest.

    Args:
        part: "train", "validation" or "test", or one of its files alone ("train/labels.npy").

    Raises:
        UserError: one is not what `prepare` wrote.
    """
    for file, expected in {**manifest.sha256, **manifest.lists}.items():
        if f"{file}/".startswith(f"{part}/") and (found := sha256(data / file)) != expected:
            raise UserError(
                f"{data / file}: has SHA-256 {found[:12]}, and had {expected[:12]} when it was "
                f"prepared; run `prepare` again, and what follows"
            )
