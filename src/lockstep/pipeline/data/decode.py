"""How each dataset is decoded: from its files to labels, and to pixels as a stream."""

import collections
import contextlib
import gzip
import hashlib
import io
import math
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, UnidentifiedImageError

from lockstep import random as streams
from lockstep.errors import UserError, first_line
from lockstep.files import DAMAGE
from lockstep.pipeline.config import Dataset
from lockstep.pipeline.data.arrays import read_head
from lockstep.pipeline.data.folder import images_by_class
from lockstep.pipeline.data.sources import SOURCES

# Bytes of pixels that are handled at once: they fit a processor's cache, and are many images or a
# piece of one.
BLOCK = 4 << 20

# In a part of MNIST, its kin, and CIFAR with both parts.
MOST_IMAGES = 60_000

# More than any camera has; of each, the mean and deviation are in the manifest.
MOST_CHANNELS = 1024

DOWNLOAD_AGAIN = "; download again (snakemake --forcerun download)"

File = IO[bytes] | gzip.GzipFile
Shape = tuple[int, ...]
Pixels = Iterator[tuple[str, np.ndarray]]


@dataclass(frozen=True)
class Decoded:
    """A dataset on its way to disk. Its parts are "train" and "test".

    Args:
        names: of the classes.
        labels: int64, N, by part.
        shapes: of an image, (H, W, C), by part.
        pixels: uint8, each part's images one after the other, in arrays of whole images
            (n x H x W x C) or of a piece of one (n x C), with the name of their part. What is
            wrong with them is raised on the way.
        sums: the SHA-256 of files that were read for `pixels`.
    """

    names: list[str]
    labels: dict[str, np.ndarray]
    shapes: dict[str, Shape]
    pixels: Pixels
    sums: dict[Path, str] = field(default_factory=dict)


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


def _test_share(labels: np.ndarray, fraction: float, names: list[str], where: str) -> np.ndarray:
    """Return which samples are for the test (bool, N): `fraction` of each class, one at least."""
    test = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        ids = np.flatnonzero(labels == label)
        order = streams.permutation(len(ids), "test", int(label))
        test[ids[order[: max(1, round(fraction * len(ids)))]]] = True
        if test[ids].all():
            raise UserError(
                f"{where}: class {names[label]!r} has too few images, {len(ids)}, for a "
                f"test_fraction of {fraction} to leave any for training; add some"
            )
    return test


def _of_arrays(
    names: list[str], images: dict[str, np.ndarray], labels: dict[str, np.ndarray]
) -> Decoded:
    def pixels() -> Pixels:
        for part, array in images.items():
            step = max(1, BLOCK // max(1, array[:1].size))
            for start in range(0, len(array), step):
                yield part, array[start : start + step]

    return Decoded(
        names,
        {part: array.astype(np.int64) for part, array in labels.items()},
        {part: array.shape[1:] for part, array in images.items()},
        pixels(),
    )


def _share_out(file: File, shape: Shape, test: np.ndarray) -> Pixels:
    """Yield the pixels of the images in `file`, one for each of `test`, by part.

    Raises:
        EOFError, ValueError, or another of DAMAGE: there are fewer, or more follows.
    """
    size = math.prod(shape)
    step = max(1, BLOCK // size)
    for start in range(0, len(test), step):
        chosen = test[start : start + step]
        if size <= BLOCK:
            block = _take(file, len(chosen) * size).reshape(-1, *shape)
            for part, some in (("train", ~chosen), ("test", chosen)):
                if some.any():
                    yield part, block if some.all() else block[some]
        else:
            piece = BLOCK // shape[-1] * shape[-1] or shape[-1]
            for place in range(0, size, piece):
                pixels = _take(file, min(piece, size - place)).reshape(-1, shape[-1])
                yield "test" if chosen[0] else "train", pixels
    if file.read(1):
        raise ValueError("more follows than its head says")


def _take(file: File, count: int) -> np.ndarray:
    # Piece by piece: a head may claim any number of bytes, and they are not there.
    pieces = []
    while count and (piece := file.read(min(count, BLOCK))):
        pieces.append(piece)
        count -= len(piece)
    if count:
        raise EOFError("cut short")
    return np.frombuffer(b"".join(pieces), np.uint8)


@contextlib.contextmanager
def _expecting(path: Path, what: str, advice: str = "") -> Iterator[None]:
    """Make a UserError of what a reader of `path` raises where it is not `what`."""
    try:
        yield
    except DAMAGE as error:
        raise UserError(f"{path}: not {what} ({first_line(error)}){advice}") from None


def _digits(dataset: Dataset, raw: Path, threads: int) -> Decoded:
    """scikit-learn's 1,797 scans of 8 x 8 pixels, brought to 28 x 28 as MNIST's are: 20 x 20 pixels
    of drawing, and a border."""
    from sklearn.datasets import load_digits

    scans = load_digits()
    small = np.round(scans.images * (255 / 16)).astype(np.uint8)
    drawn = [Image.fromarray(s).resize((20, 20), Image.Resampling.BILINEAR) for s in small]
    images = np.pad(np.stack([np.asarray(d) for d in drawn]), ((0, 0), (4, 4), (4, 4)))[..., None]
    names = list(SOURCES["digits"].classes)
    test = _test_share(scans.target, dataset.test_fraction, names, dataset.id)
    return _of_arrays(
        names,
        {"train": images[~test], "test": images[test]},
        {"train": scans.target[~test], "test": scans.target[test]},
    )


def _idx(dataset: Dataset, raw: Path, threads: int) -> Decoded:
    """MNIST and its kin: gzipped IDX files (http://yann.lecun.com/exdb/mnist)."""

    def expecting(path: Path) -> contextlib.AbstractContextManager[None]:
        return _expecting(path, "a whole gzipped IDX file", DOWNLOAD_AGAIN)

    def head(file: File, dimensions: int) -> Shape:
        words = struct.unpack(f">{1 + dimensions}I", file.read(4 + 4 * dimensions))
        if words[0] != 8 << 8 | dimensions or 0 in words[2:]:  # 8: unsigned bytes
            raise ValueError(f"begins with {words}, expected bytes in {dimensions} dimensions")
        if words[1] > MOST_IMAGES:
            raise ValueError(f"claims {words[1]} images or labels, and there are {MOST_IMAGES}")
        return words[1:]

    def pixels(path: Path, test: np.ndarray) -> Pixels:
        with expecting(path), gzip.open(path) as file:
            yield from _share_out(file, (*head(file, 3)[1:], 1), test)

    labels, shapes, parts = {}, {}, []
    for part, prefix in (("train", "train"), ("test", "t10k")):
        path = raw / f"{prefix}-images-idx3-ubyte.gz"
        with expecting(path), gzip.open(path) as file:
            images, *size = head(file, 3)
        path = raw / f"{prefix}-labels-idx1-ubyte.gz"
        with expecting(path), gzip.open(path) as file:
            (count,) = head(file, 1)
            labels[part] = _take(file, count).astype(np.int64)
            if file.read(1):
                raise ValueError("more follows than its head says")
        if images != count:
            raise UserError(
                f"{raw}: {prefix}-* have {images} images and {count} labels, expected as many"
                f"{DOWNLOAD_AGAIN}"
            )
        shapes[part] = (*size, 1)
        test = np.full(count, part == "test")
        parts.append(pixels(raw / f"{prefix}-images-idx3-ubyte.gz", test))
    names = list(SOURCES[dataset.name].classes)
    return Decoded(names, labels, shapes, (pair for some in parts for pair in some))


def _cifar(dataset: Dataset, raw: Path, threads: int) -> Decoded:
    """CIFAR-10 and CIFAR-100 from their binary form: label bytes, then 3 x 32 x 32 pixels.

    torchvision reads the Python form, which is a pickle; this one is not.
    """
    (archive,) = SOURCES[dataset.name].files
    labels_before = {"cifar10": 1, "cifar100": 2}[dataset.name]  # CIFAR-100: coarse, then fine
    size = labels_before + 3 * 32 * 32
    found: dict[str, dict[str, np.ndarray]] = {"train": {}, "test": {}}
    left = MOST_IMAGES * size  # bytes
    with _expecting(raw / archive, "the whole binary archive", DOWNLOAD_AGAIN):
        with gzip.open(raw / archive) as plain, tarfile.open(fileobj=plain, mode="r:") as tar:
            for member in tar:
                if member.name.endswith(".bin") and (file := tar.extractfile(member)):
                    if (left := left - member.size) < 0:
                        raise ValueError(f"has more than {MOST_IMAGES} images")
                    part = "test" if "test" in Path(member.name).name else "train"
                    found[part][member.name] = np.frombuffer(file.read(), np.uint8)
            while plain.read(BLOCK):  # at its end the checksum is compared
                pass
        records = {
            part: np.concatenate([files[name] for name in sorted(files)]).reshape(-1, size)
            for part, files in found.items()
        }
    images = {
        part: rows[:, labels_before:].reshape(-1, 3, 32, 32) for part, rows in records.items()
    }
    return _of_arrays(
        list(SOURCES[dataset.name].classes),
        {part: planes.transpose(0, 2, 3, 1) for part, planes in images.items()},
        {part: rows[:, labels_before - 1] for part, rows in records.items()},
    )


def _npz(dataset: Dataset, raw: Path, threads: int) -> Decoded:
    """The user's own arrays: images and labels, and test_images and test_labels, or a share."""
    path = Path(str(dataset.path))
    if path.exists() and not path.is_file():  # a pipe, that may have nothing in it for ever
        raise UserError(f"dataset.path: {path} is not a file; expected an .npz of your own")

    def expecting() -> contextlib.AbstractContextManager[None]:
        return _expecting(path, "an .npz of plain arrays")

    @contextlib.contextmanager
    def opened(name: str) -> Iterator[tuple[IO[bytes], np.dtype, Shape]]:
        with zipfile.ZipFile(path) as archive, archive.open(members[name]) as file:
            try:
                dtype, shape = read_head(file, members[name].file_size)
            except DAMAGE as error:
                raise ValueError(f"{name}: {first_line(error)}") from None
            yield file, dtype, shape

    with expecting(), zipfile.ZipFile(path) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}

    def check(prefix: str) -> tuple[Shape, np.ndarray]:
        """Return the shape of an image of a part, (H, W, C), and the part's labels."""
        missing = [n for n in (f"{prefix}images", f"{prefix}labels") if n not in members]
        if missing:
            has = ", ".join(members) or "nothing"
            raise UserError(f"{path}: has no array {missing[0]!r}; it has {has}")
        with expecting(), opened(f"{prefix}images") as (_, dtype, shape):
            pass
        plausible = len(shape) in (3, 4) and 0 not in shape[1:] and shape[3:] <= (MOST_CHANNELS,)
        if dtype != np.uint8 or not plausible:
            raise UserError(
                f"{path}: {prefix}images is {dtype} {shape}, expected uint8, "
                f"N x H x W or N x H x W x C"
            )
        if len(shape) == 4 and shape[1] in (1, 3, 4) and shape[3] not in (1, 3, 4):
            raise UserError(
                f"{path}: {prefix}images is {shape}, which looks like N x C x H x W; expected "
                f"N x H x W x C: save images.transpose(0, 2, 3, 1).copy()"
            )
        with expecting(), opened(f"{prefix}labels") as (file, kind, count):
            if len(count) == 1 and kind.kind in "iu" and count[0] == shape[0]:
                labels = _take(file, count[0] * kind.itemsize).view(kind).astype(np.int64)
                file.read(1)  # at its end the member's checksum is compared
                return (*shape[1:], 1)[:3], labels
        raise UserError(
            f"{path}: {prefix}labels is {kind} {count}, expected {shape[0]} integers, one for each "
            f"image"
        )

    def pixels(name: str, shape: Shape, test: np.ndarray) -> Pixels:
        with expecting(), opened(name) as (file, _, _):
            yield from _share_out(file, shape, test)

    shape, labels = check("")
    if not len(labels):
        raise UserError(f"{path}: images is empty")
    if labels.max() >= len(labels):
        raise UserError(
            f"{path}: labels has {labels.max()} for {len(labels)} images, so that some class has "
            f"no image; number the classes from 0"
        )
    names = [str(label) for label in range(max(0, int(labels.max())) + 1)]
    if any(name.startswith("test_") for name in members):
        test_shape, test_labels = check("test_")
        train = pixels("images", shape, np.zeros(len(labels), bool))
        test = pixels("test_images", test_shape, np.ones(len(test_labels), bool))
        return Decoded(
            names,
            {"train": labels, "test": test_labels},
            {"train": shape, "test": test_shape},
            (pair for some in (train, test) for pair in some),
        )
    check_labels(labels, names, str(path))
    chosen = _test_share(labels, dataset.test_fraction, names, str(path))
    return Decoded(
        names,
        {"train": labels[~chosen], "test": labels[chosen]},
        {"train": shape, "test": shape},
        pixels("images", shape, chosen),
    )


def _imagefolder(dataset: Dataset, raw: Path, threads: int) -> Decoded:
    """The user's own images: a folder for each class, below train/ and test/ or to be split."""
    root = Path(str(dataset.path))
    parted = (root / "train").is_dir() and (root / "test").is_dir()
    found = {part: images_by_class(root / part if parted else root) for part in ("train", "test")}
    names, test_names = (list(classes) for classes in found.values())
    if names != test_names:
        odd = sorted(set(names) ^ set(test_names))
        raise UserError(f"{root}: class {odd[0]!r} is not in both train/ and test/")
    files = {part: [f for some in found[part].values() for f in some] for part in found}
    labels = {
        part: np.repeat(np.arange(len(names)), [len(some) for some in found[part].values()])
        for part in found
    }
    if not parted:
        test = _test_share(labels["train"], dataset.test_fraction, names, str(root))
        for part, chosen in (("train", ~test), ("test", test)):
            labels[part] = labels[part][chosen]
            files[part] = [files[part][i] for i in np.flatnonzero(chosen)]
    sums: dict[Path, str] = {}
    model, shape = _first_shape([*files["train"], *files["test"]])
    pixels = _of_files(root, files, model, shape, threads, sums)
    return Decoded(names, labels, dict.fromkeys(files, shape), pixels, sums)


def _of_files(
    root: Path,
    files: dict[str, list[Path]],
    model: Path,
    shape: Shape,
    threads: int,
    sums: dict[Path, str],
) -> Pixels:
    """Yield the pixels of image files, decoded by threads a few blocks ahead, and fill `sums`.

    Raises:
        UserError: files cannot be decoded, or are of another shape than `model`. It comes at the
            end and names all of them, or the first ten.
    """
    problems: list[str] = []

    def decode(paths: list[Path]) -> tuple[np.ndarray, list[str], list[str]]:
        images = np.zeros((len(paths), *shape), np.uint8)
        digests, wrong = [], []
        for path, image in zip(paths, images, strict=True):
            try:
                digests.append(_decode(path, model, image))
            except UserError as error:
                wrong.append(str(error))
                digests.append("")
        return images, digests, wrong

    step = max(1, BLOCK // math.prod(shape))
    waiting: collections.deque[tuple[str, list[Path], Future]] = collections.deque()

    def next_done() -> tuple[str, np.ndarray]:
        part, paths, future = waiting.popleft()
        images, digests, wrong = future.result()
        sums.update(zip(paths, digests, strict=True))
        problems.extend(wrong)
        return part, images

    with ThreadPoolExecutor(threads) as pool:
        for part, paths in files.items():
            for start in range(0, len(paths), step):
                some = paths[start : start + step]
                waiting.append((part, some, pool.submit(decode, some)))
                if len(waiting) > threads + 1:
                    yield next_done()
        while waiting:
            yield next_done()
    if len(problems) == 1:
        raise UserError(problems[0])
    if problems:
        more = f"; and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise UserError(
            f"{root}: {len(problems)} of {sum(map(len, files.values()))} images are of no use: "
            f"{'; '.join(problems[:10])}{more}"
        )


def _first_shape(paths: list[Path]) -> tuple[Path, Shape]:
    """Return the first of the files that is an image, as far as its head says, and its shape."""
    for path in paths:
        with contextlib.suppress(UserError), _opened(path, path) as image:
            return path, _shape_of(image)
    return paths[0], (1, 1, 1)


def _decode(path: Path, model: Path, target: np.ndarray) -> str:
    """Decode a file into `target` (uint8, H x W x C, the shape of `model`); return its SHA-256.

    Raises:
        UserError: it is no whole image, or of another shape.
    """
    with _expecting(path, "a whole image"):
        content = path.read_bytes()
    with _opened(path, io.BytesIO(content)) as image:
        shape = _shape_of(image)
        if shape != target.shape:
            raise UserError(
                f"{path}: is {_size(shape)}, and {model} is {_size(target.shape)}; bring all "
                f"images to one size and colour mode"
            )
        pixels = np.asarray(image if image.mode == "L" else image.convert("RGB"))
        target[...] = pixels.reshape(shape)
    return hashlib.sha256(content).hexdigest()


@contextlib.contextmanager
def _opened(path: Path, source: Path | IO[bytes]) -> Iterator[Image.Image]:
    """Open an image of 8 bits a channel.

    Raises:
        UserError: it is none, or what is done with it shows that it is not whole.
    """
    with _expecting(path, "a whole image"):
        try:
            with Image.open(source) as image:
                if image.mode.startswith("I") or image.mode == "F":
                    raise UserError(
                        f"{path}: has {image.mode} pixels, more than 8 bits each; save it with 8 "
                        f"bits, scaled as you see fit"
                    )
                yield image
        except UnidentifiedImageError:  # which names an object in memory
            raise ValueError("of no known form") from None
        except Image.DecompressionBombError as error:
            raise ValueError(first_line(error)) from None


def _shape_of(image: Image.Image) -> Shape:
    return (image.height, image.width, 1 if image.mode == "L" else 3)


def _size(shape: Shape) -> str:
    height, width, channels = shape
    return f"{width} x {height} pixels, {'grey' if channels == 1 else 'colour'}"


READERS: dict[str, Callable[[Dataset, Path, int], Decoded]] = {
    "digits": _digits,
    "mnist": _idx,
    "fashion_mnist": _idx,
    "kmnist": _idx,
    "cifar10": _cifar,
    "cifar100": _cifar,
    "npz": _npz,
    "imagefolder": _imagefolder,
}
