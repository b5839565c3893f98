"""How each dataset is decoded: from its files to labels, and to pixels as a stream."""

import contextlib
import gzip
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from lockstep.errors import UserError
from lockstep.pipeline.config import Dataset
from lockstep.pipeline.data import function, npz, photos
from lockstep.pipeline.data.sources import SOURCES
from lockstep.pipeline.data.split import TEST, VALIDATION, split
from lockstep.pipeline.data.stream import (
    BLOCK,
    DOWNLOAD_AGAIN,
    Decoded,
    File,
    Rows,
    Shape,
    by_part,
    check_labels,
    expecting,
    of_images,
    share_out,
    take,
)

# In a part of MNIST, its kin, and CIFAR with both parts.
MOST_IMAGES = 60_000


def _of_array(
    names: list[str], images: np.ndarray, labels: np.ndarray, which: np.ndarray
) -> Decoded:
    def rows() -> Rows:
        step = max(1, BLOCK // max(1, images[:1].size))
        for start in range(0, len(images), step):
            yield from by_part(images[start : start + step], which[start : start + step])

    shapes = dict.fromkeys(("train", "test"), images.shape[1:])
    return of_images(names, labels, which, shapes, rows())


def _with_its_test(
    dataset: Dataset, names: list[str], train: np.ndarray, test: np.ndarray
) -> np.ndarray:
    """Return the parts of a dataset's samples, given the labels of its own two, one after other."""
    chosen = split(train, dataset, names, dataset.id, parts=(VALIDATION,))
    return np.concatenate([chosen, np.full(len(test), TEST, np.uint8)])


def _digits(dataset: Dataset, raw: Path, threads: int) -> Decoded:
    """scikit-learn's 1,797 scans of 8 x 8 pixels, brought to 28 x 28 as MNIST's are: 20 x 20 pixels
    of drawing, and a border."""
    from sklearn.datasets import load_digits

    scans = load_digits()
    small = np.round(scans.images * (255 / 16)).astype(np.uint8)
    drawn = [Image.fromarray(s).resize((20, 20), Image.Resampling.BILINEAR) for s in small]
    images = np.pad(np.stack([np.asarray(d) for d in drawn]), ((0, 0), (4, 4), (4, 4)))[..., None]
    names = list(SOURCES["digits"].classes)
    which = split(scans.target, dataset, names, dataset.id)
    return _of_array(names, images, scans.target, which)


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

    def pixels(path: Path, which: np.ndarray) -> Rows:
        with expected(path), gzip.open(path) as file:
            yield from share_out(file, (*head(file, 3)[1:], 1), which)

    labels, shapes = {}, {}
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
    names = list(SOURCES[dataset.name].classes)
    for part, some in labels.items():
        check_labels(some, names, f"{dataset.id}, {part}", whole=False)
    which = _with_its_test(dataset, names, labels["train"], labels["test"])
    parts = [
        pixels(raw / f"{prefix}-images-idx3-ubyte.gz", some)
        for prefix, some in zip(
            ("train", "t10k"), np.split(which, [len(labels["train"])]), strict=True
        )
    ]
    return of_images(
        names,
        np.concatenate(list(labels.values())),
        which,
        shapes,
        (pair for some in parts for pair in some),
    )


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
    rows = np.concatenate([records["train"], records["test"]])
    images = rows[:, labels_before:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    labels = rows[:, labels_before - 1].astype(np.int64)
    names, first = list(SOURCES[dataset.name].classes), len(records["train"])
    check_labels(labels, names, dataset.id, whole=False)
    which = _with_its_test(dataset, names, labels[:first], labels[first:])
    return _of_array(names, images, labels, which)


READERS: dict[tuple[str, str], Callable[[Dataset, Path, int], Decoded]] = {
    ("classification", "digits"): _digits,
    ("classification", "mnist"): _idx,
    ("classification", "fashion_mnist"): _idx,
    ("classification", "kmnist"): _idx,
    ("classification", "cifar10"): _cifar,
    ("classification", "cifar100"): _cifar,
    ("classification", "imagefolder"): photos.folder,
    ("classification", "table"): photos.listed,
    ("classification", "function"): function.yielded,
    ("classification", "npz"): npz.images,
    ("regression", "npz"): npz.numbers,
    ("language", "npz"): npz.tokens,
}
"""By task and name."""
