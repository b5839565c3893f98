"""How each dataset is decoded: from its files to labels and images, in chunks."""

import gzip
import shutil
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lockstep.config import Dataset
from lockstep.data import streams
from lockstep.data.sources import SOURCES
from lockstep.errors import UserError, first_line

CHUNK = 1024

# What decoders raise when a file is damaged, or is something else.
DAMAGE = (
    *(OSError, EOFError, ValueError, TypeError, LookupError, AssertionError, RuntimeError),
    *(SyntaxError, struct.error, zlib.error, tarfile.TarError, zipfile.BadZipFile),
)


@dataclass(frozen=True)
class Decoded:
    """One part of a dataset on its way to disk: labels (int64, N), and images (uint8, in chunks of
    n x H x W x C) in the same order."""

    labels: np.ndarray
    shape: tuple[int, int, int]
    chunks: Iterable[np.ndarray]


# The names of the classes, and the parts "train" and "test".
Parts = tuple[list[str], dict[str, Decoded]]


def check_labels(labels: np.ndarray, names: list[str], where: str) -> None:
    """Raise a UserError that names a label out of range, or a class without an image."""
    wrong = np.flatnonzero((labels < 0) | (labels >= len(names)))
    if len(wrong):
        raise UserError(
            f"{where}: sample {wrong[0]} has label {labels[wrong[0]]}, expected 0 to "
            f"{len(names) - 1}"
        )
    empty = np.flatnonzero(np.bincount(labels, minlength=len(names)) == 0)
    if len(empty):
        raise UserError(f"{where}: class {names[empty[0]]!r} ({empty[0]}) has no image")


def _split(labels: np.ndarray, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids of training and of test samples, `fraction` of each class for the test."""
    test = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        ids = np.flatnonzero(labels == label)
        order = streams.permutation(len(ids), "test", int(label))
        test[ids[order[: max(1, round(fraction * len(ids)))]]] = True
    return np.flatnonzero(~test), np.flatnonzero(test)


def _chunked(images: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(images), CHUNK):
        yield images[start : start + CHUNK]


def _of_arrays(images: np.ndarray, labels: np.ndarray) -> Decoded:
    return Decoded(labels.astype(np.int64), images.shape[1:], _chunked(images))


def _digits(dataset: Dataset, raw: Path) -> Parts:
    """scikit-learn's 1,797 scans of 8 x 8 pixels, brought to 28 x 28 as MNIST's are: 20 x 20 pixels
    of drawing, and a border."""
    from PIL import Image
    from sklearn.datasets import load_digits

    scans = load_digits()
    small = np.round(scans.images * (255 / 16)).astype(np.uint8)
    drawn = [Image.fromarray(s).resize((20, 20), Image.Resampling.BILINEAR) for s in small]
    images = np.pad(np.stack([np.asarray(d) for d in drawn]), ((0, 0), (4, 4), (4, 4)))[..., None]
    train, test = _split(scans.target, dataset.test_fraction)
    return list(SOURCES["digits"].classes), {
        "train": _of_arrays(images[train], scans.target[train]),
        "test": _of_arrays(images[test], scans.target[test]),
    }


def _idx(dataset: Dataset, raw: Path) -> Parts:
    """MNIST and its kin: gzipped IDX files, read by torchvision."""
    from torchvision.datasets.mnist import read_image_file, read_label_file

    def read(reader: Callable[[str], Any], path: Path) -> np.ndarray:
        with tempfile.TemporaryDirectory() as folder:
            plain = Path(folder) / path.stem
            try:
                with gzip.open(path) as source, plain.open("wb") as target:
                    shutil.copyfileobj(source, target)
                return reader(str(plain)).numpy()
            except DAMAGE as error:
                why = first_line(error)
                raise UserError(
                    f"{path}: not a whole gzipped IDX file ({why}); download again (snakemake "
                    f"--forcerun download)"
                ) from None

    parts = {}
    for part, prefix in (("train", "train"), ("test", "t10k")):
        images = read(read_image_file, raw / f"{prefix}-images-idx3-ubyte.gz")
        labels = read(read_label_file, raw / f"{prefix}-labels-idx1-ubyte.gz")
        if len(images) != len(labels):
            raise UserError(
                f"{raw}: {prefix}-* have {len(images)} images and {len(labels)} labels, expected "
                f"as many; download again (snakemake --forcerun download)"
            )
        parts[part] = _of_arrays(images[..., None], labels)
    return list(SOURCES[dataset.name].classes), parts


def _cifar(dataset: Dataset, raw: Path) -> Parts:
    """CIFAR-10 and CIFAR-100 from their binary form: label bytes, then 3 x 32 x 32 pixels.

    torchvision reads the Python form, which is a pickle; this one is not.
    """
    (archive,) = SOURCES[dataset.name].files
    labels_before = {"cifar10": 1, "cifar100": 2}[dataset.name]  # CIFAR-100: coarse, then fine
    found: dict[str, list[np.ndarray]] = {"train": [], "test": []}
    try:
        with tarfile.open(raw / archive, "r:gz") as tar:
            for member in sorted(tar.getmembers(), key=lambda m: m.name):
                if member.name.endswith(".bin") and (file := tar.extractfile(member)):
                    part = "test" if "test" in Path(member.name).name else "train"
                    found[part].append(np.frombuffer(file.read(), np.uint8))
        size = labels_before + 3 * 32 * 32
        records = {part: np.concatenate(some).reshape(-1, size) for part, some in found.items()}
    except DAMAGE as error:
        why = first_line(error)
        raise UserError(
            f"{raw / archive}: not the whole binary archive ({why}); download again (snakemake "
            f"--forcerun download)"
        ) from None
    return list(SOURCES[dataset.name].classes), {
        part: _of_arrays(
            rows[:, labels_before:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1),
            rows[:, labels_before - 1],
        )
        for part, rows in records.items()
    }


def _npz(dataset: Dataset, raw: Path) -> Parts:
    """The user's own arrays: images and labels, and test_images and test_labels, or a share."""
    path = Path(str(dataset.path))
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except DAMAGE as error:
        raise UserError(f"{path}: not an .npz of plain arrays ({first_line(error)})") from None

    def part(prefix: str) -> tuple[np.ndarray, np.ndarray]:
        missing = [n for n in (f"{prefix}images", f"{prefix}labels") if n not in arrays]
        if missing:
            has = ", ".join(arrays) or "nothing"
            raise UserError(f"{path}: has no array {missing[0]!r}; it has {has}")
        images, labels = arrays[f"{prefix}images"], arrays[f"{prefix}labels"]
        images = images[..., None] if images.ndim == 3 else images
        if images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape[1:]:
            raise UserError(
                f"{path}: {prefix}images is {images.dtype} {images.shape}, expected uint8, "
                f"N x H x W or N x H x W x C"
            )
        if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) != len(images):
            raise UserError(
                f"{path}: {prefix}labels is {labels.dtype} {labels.shape}, expected {len(images)} "
                f"integers, one for each image"
            )
        return images, labels.astype(np.int64)

    images, labels = part("")
    if not len(labels):
        raise UserError(f"{path}: images is empty")
    if labels.max() >= len(labels):
        raise UserError(
            f"{path}: labels has {labels.max()} for {len(labels)} images, so that some class has "
            f"no image; number the classes from 0"
        )
    names = [str(label) for label in range(max(0, int(labels.max())) + 1)]
    if any(name.startswith("test_") for name in arrays):
        return names, {"train": _of_arrays(images, labels), "test": _of_arrays(*part("test_"))}
    check_labels(labels, names, str(path))
    train, test = _split(labels, dataset.test_fraction)
    return names, {
        "train": _of_arrays(images[train], labels[train]),
        "test": _of_arrays(images[test], labels[test]),
    }


def _imagefolder(dataset: Dataset, raw: Path) -> Parts:
    """The user's own images: a folder for each class, below train/ and test/ or to be split."""
    from torchvision.datasets import ImageFolder

    def listing(folder: Path) -> tuple[list[str], list[Path], np.ndarray]:
        try:
            found = ImageFolder(str(folder))
        except (OSError, FileNotFoundError) as error:
            raise UserError(f"{folder}: {first_line(error)}") from None
        paths = [Path(path) for path, _ in found.samples]
        return found.classes, paths, np.array([label for _, label in found.samples], np.int64)

    root = Path(str(dataset.path))
    if (root / "train").is_dir() and (root / "test").is_dir():
        names, paths, labels = listing(root / "train")
        test_names, test_paths, test_labels = listing(root / "test")
        if names != test_names:
            odd = sorted(set(names) ^ set(test_names))
            raise UserError(f"{root}: class {odd[0]!r} is not in both train/ and test/")
        return names, {
            "train": _of_files(paths, labels),
            "test": _of_files(test_paths, test_labels),
        }
    names, paths, labels = listing(root)
    train, test = _split(labels, dataset.test_fraction)
    return names, {
        "train": _of_files([paths[i] for i in train], labels[train]),
        "test": _of_files([paths[i] for i in test], labels[test]),
    }


def _of_files(paths: list[Path], labels: np.ndarray) -> Decoded:
    from PIL import Image

    def decode(path: Path) -> np.ndarray:
        try:
            with Image.open(path) as image:
                pixels = np.asarray(image if image.mode == "L" else image.convert("RGB"))
        except (*DAMAGE, Image.DecompressionBombError) as error:
            raise UserError(f"{path}: not a whole image ({first_line(error)})") from None
        return pixels[..., None] if pixels.ndim == 2 else pixels

    first = decode(paths[0])

    def chunks() -> Iterator[np.ndarray]:
        for start in range(0, len(paths), CHUNK):
            some = [(path, decode(path)) for path in paths[start : start + CHUNK]]
            for path, image in some:
                if image.shape != first.shape:
                    raise UserError(
                        f"{path}: is {_size(image)}, and {paths[0]} is {_size(first)}; bring all "
                        f"images to one size and colour mode"
                    )
            yield np.stack([image for _, image in some])

    return Decoded(labels, first.shape, chunks())


def _size(image: np.ndarray) -> str:
    height, width, channels = image.shape
    return f"{width} x {height} pixels, {'grey' if channels == 1 else 'colour'}"


READERS: dict[str, Callable[[Dataset, Path], Parts]] = {
    "digits": _digits,
    "mnist": _idx,
    "fashion_mnist": _idx,
    "kmnist": _idx,
    "cifar10": _cifar,
    "cifar100": _cifar,
    "npz": _npz,
    "imagefolder": _imagefolder,
}
