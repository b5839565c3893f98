"""How each dataset is decoded: from its files to labels, and to pixels as a stream."""

import collections
import contextlib
import gzip
import hashlib
import io
import math
import struct
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, UnidentifiedImageError

from lockstep.errors import UserError, first_line
from lockstep.pipeline.config import Dataset
from lockstep.pipeline.data import npz
from lockstep.pipeline.data.folder import images_by_class
from lockstep.pipeline.data.sources import SOURCES
from lockstep.pipeline.data.stream import (
    BLOCK,
    DOWNLOAD_AGAIN,
    Decoded,
    File,
    Rows,
    Shape,
    expecting,
    of_images,
    share_of_classes,
    share_out,
    take,
)

# In a part of MNIST, its kin, and CIFAR with both parts.
MOST_IMAGES = 60_000


def _of_arrays(
    names: list[str], images: dict[str, np.ndarray], labels: dict[str, np.ndarray]
) -> Decoded:
    def rows() -> Rows:
        for part, array in images.items():
            step = max(1, BLOCK // max(1, array[:1].size))
            for start in range(0, len(array), step):
                yield part, array[start : start + step]

    shapes = {part: array.shape[1:] for part, array in images.items()}
    return of_images(names, labels, shapes, rows())


def _digits(dataset: Dataset, raw: Path, threads: int) -> Decoded:
    """scikit-learn's 1,797 scans of 8 x 8 pixels, brought to 28 x 28 as MNIST's are: 20 x 20 pixels
    of drawing, and a border."""
    from sklearn.datasets import load_digits

    scans = load_digits()
    small = np.round(scans.images * (255 / 16)).astype(np.uint8)
    drawn = [Image.fromarray(s).resize((20, 20), Image.Resampling.BILINEAR) for s in small]
    images = np.pad(np.stack([np.asarray(d) for d in drawn]), ((0, 0), (4, 4), (4, 4)))[..., None]
    names = list(SOURCES["digits"].classes)
    test = share_of_classes(scans.target, dataset.test_fraction, names, dataset.id)
    return _of_arrays(
        names,
        {"train": images[~test], "test": images[test]},
        {"train": scans.target[~test], "test": scans.target[test]},
    )


def _idx(dataset: Dataset, raw: Path, threads: int) -> Decoded:
    """MNIST and its kin: gzipped IDX files (http://yann.lecun.com/exdb/mnist)."""

    def expected(path: Path) -> contextlib.AbstractContextManager[None]:
        return expecting(path, "a whole gzipped IDX file", DOWNLOAD_AGAIN)

    def head(file: File, dimensions: int) -> Shape:
        words = struct.unpack(f">{1 + dimensions}I", file.read(4 + 4 * dimensions))
        if words[0] != 8 << 8 | dimensions or 0 in words[2:]:  # 8: unsigned bytes
            raise ValueError(f"begins with {words}, expected bytes in {dimensions} dimensions")
        if words[1] > MOST_IMAGES:
            raise ValueError(f"claims {words[1]} images or labels, and there are {MOST_IMAGES}")
        return words[1:]

    def pixels(path: Path, test: np.ndarray) -> Rows:
        with expected(path), gzip.open(path) as file:
            yield from share_out(file, (*head(file, 3)[1:], 1), test)

    labels, shapes, parts = {}, {}, []
    for part, prefix in (("train", "train"), ("test", "t10k")):
        path = raw / f"{prefix}-images-idx3-ubyte.gz"
        with expected(path), gzip.open(path) as file:
            images, *size = head(file, 3)
        path = raw / f"{prefix}-labels-idx1-ubyte.gz"
        with expected(path), gzip.open(path) as file:
            (count,) = head(file, 1)
            labels[part] = take(file, count).astype(np.int64)
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
    return of_images(names, labels, shapes, (pair for some in parts for pair in some))


def _cifar(dataset: Dataset, raw: Path, threads: int) -> Decoded:
    """CIFAR-10 and CIFAR-100 from their binary form: label bytes, then 3 x 32 x 32 pixels.

    torchvision reads the Python form, which is a pickle; this one is not.
    """
    (archive,) = SOURCES[dataset.name].files
    labels_before = {"cifar10": 1, "cifar100": 2}[dataset.name]  # CIFAR-100: coarse, then fine
    size = labels_before + 3 * 32 * 32
    found: dict[str, dict[str, np.ndarray]] = {"train": {}, "test": {}}
    left = MOST_IMAGES * size  # bytes
    with expecting(raw / archive, "the whole binary archive", DOWNLOAD_AGAIN):
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
        test = share_of_classes(labels["train"], dataset.test_fraction, names, str(root))
        for part, chosen in (("train", ~test), ("test", test)):
            labels[part] = labels[part][chosen]
            files[part] = [files[part][i] for i in np.flatnonzero(chosen)]
    sums: dict[Path, str] = {}
    model, shape = _first_shape([*files["train"], *files["test"]])
    rows = _of_files(root, files, model, shape, threads, sums)
    return of_images(names, labels, dict.fromkeys(files, shape), rows, sums)


def _of_files(
    root: Path,
    files: dict[str, list[Path]],
    model: Path,
    shape: Shape,
    threads: int,
    sums: dict[Path, str],
) -> Rows:
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
    with expecting(path, "a whole image"):
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
    with expecting(path, "a whole image"):
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


READERS: dict[tuple[str, str], Callable[[Dataset, Path, int], Decoded]] = {
    ("classification", "digits"): _digits,
    ("classification", "mnist"): _idx,
    ("classification", "fashion_mnist"): _idx,
    ("classification", "kmnist"): _idx,
    ("classification", "cifar10"): _cifar,
    ("classification", "cifar100"): _cifar,
    ("classification", "imagefolder"): _imagefolder,
    ("classification", "npz"): npz.images,
    ("regression", "npz"): npz.numbers,
    ("language", "npz"): npz.tokens,
}
"""By task and name."""
