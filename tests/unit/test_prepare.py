"""prepare: what the readers decode, and what they refuse."""

import gzip
import io
import json
import os
import struct
import tarfile
import tempfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lockstep.files import sha256
from lockstep.pipeline.config import Dataset
from lockstep.pipeline.data.arrays import Moments, open_part
from lockstep.pipeline.data.folder import images_by_class
from lockstep.pipeline.data.manifest import read_manifest
from lockstep.pipeline.data.sources import SOURCES
from lockstep.pipeline.data.split import split
from lockstep.pipeline.stages.download import download
from lockstep.pipeline.stages.prepare import prepare


@pytest.fixture
def random():
    return np.random.default_rng(0)


# digits


def test_digits_have_their_samples_shapes_and_classes(digits):
    record = json.loads((digits / "manifest.json").read_text())
    assert record["name"] == "digits"
    assert record["shape"] == [1, 28, 28]
    assert record["classes"] == list("0123456789")
    for name, count in (("train", 1438), ("test", 359)):
        part = open_part(digits / name)
        assert part.inputs.shape == (count, 28, 28, 1)
        assert part.inputs.dtype == np.uint8
        assert part.targets.dtype == np.int64
        assert record[name]["samples"] == count
        counts = np.bincount(part.targets).tolist()
        assert list(record[name]["per_class"].values()) == counts


def test_digits_are_drawn_inside_a_border(digits):
    images = open_part(digits / "train").inputs[..., 0]
    inside = images[:, 4:24, 4:24]
    assert images.sum() == inside.sum()
    assert inside.reshape(len(inside), -1).max(axis=1).min() > 100  # each has something drawn


def test_the_manifest_holds_the_sums_of_the_files(digits):
    manifest = read_manifest(digits)
    assert sorted(manifest.sha256) == [
        f"{part}/{name}.npy"
        for part in ("test", "train", "validation")
        for name in ("images", "labels")
    ]
    for file, known in manifest.sha256.items():
        assert sha256(digits / file) == known


def test_the_manifests_moments_are_those_of_all_training_pixels(digits):
    manifest = read_manifest(digits)
    pixels = open_part(digits / "train").inputs / 255
    assert manifest.mean == pytest.approx([pixels.mean()], rel=1e-12)
    assert manifest.std == pytest.approx([pixels.std()], rel=1e-12)


def test_preparing_again_gives_the_same_files(digits, tmp_path):
    prepare(Dataset(), tmp_path)
    assert read_manifest(tmp_path) == read_manifest(digits)


def test_a_damaged_manifest_is_named(tmp_path, refused, digits):
    whole = (digits / "manifest.json").read_text()
    mean = whole.replace('"mean": [\n    0.', '"mean": [\n    1.')
    assert mean != whole
    for text in (None, "", whole[:-10], "[]", "{}", whole.replace("28,", "", 1), mean, "[" * 10**5):
        if text is not None:
            (tmp_path / "manifest.json").write_text(text)
        with refused(tmp_path / "manifest.json", "run `prepare` again"):
            read_manifest(tmp_path)


def test_damaged_arrays_are_named(tmp_path, refused, digits):
    for name in ("images", "labels"):
        whole = (digits / "test" / f"{name}.npy").read_bytes()
        (tmp_path / f"{name}.npy").write_bytes(whole)
    assert len(open_part(tmp_path)) == 359
    (tmp_path / "labels.npy").write_bytes(whole[:-1])
    with refused(tmp_path / "labels.npy", "run `prepare` again"):
        open_part(tmp_path)
    np.save(tmp_path / "labels.npy", np.zeros(358, np.int64))
    with refused(tmp_path, "(358,)", "run `prepare` again"):
        open_part(tmp_path)
    (tmp_path / "images.npy").unlink()
    with refused(tmp_path / "images.npy", "run `prepare` again"):
        open_part(tmp_path)


# moments


def moments(images, chunk=1):
    """Return mean and standard deviation of images that come in chunks."""
    found = Moments(images.shape[-1])
    for start in range(0, len(images), chunk):
        found.add(images[start : start + chunk])
    return found.of_unit()


@given(
    st.tuples(st.integers(1, 9), st.integers(1, 70), st.integers(1, 70), st.integers(1, 4)),
    st.integers(1, 10),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=50)
def test_moments_are_those_of_whole_numbers_however_pixels_come(shape, chunk, seed):
    images = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    mean, deviation = moments(images, chunk)
    pixels = images.reshape(-1, shape[-1]).astype(np.uint64)
    # These decide the bits of every training: they are equal, not nearly so.
    count = len(pixels)
    exact = pixels.sum(axis=0) / count
    assert mean == (exact / 255).tolist()
    square = (pixels * pixels).sum(axis=0) / count
    assert deviation == (np.sqrt(square - exact**2) / 255).tolist()
    assert mean == pytest.approx((pixels / 255).mean(axis=0), rel=1e-12)
    # A difference of squares: about eight digits of a small deviation.
    assert deviation == pytest.approx((pixels / 255).std(axis=0), rel=1e-9, abs=1e-8)


def test_sums_of_large_and_bright_images_do_not_overflow():
    images = np.full((3, 1500, 1500, 2), 255, np.uint8)  # whose squares sum up to 4 x 10^11
    assert moments(images) == ([1, 1], [0, 0])


@pytest.mark.parametrize("level", [0, 1, 77, 254, 255])
def test_a_constant_channel_has_no_deviation(level):
    images = np.zeros((3, 5, 7, 2), np.uint8)
    images[..., 1] = level
    mean, deviation = moments(images)
    assert mean == [0, pytest.approx(level / 255)]
    assert deviation == [0, 0]


# MNIST and its kin


def idx(array):
    """Return an array as the bytes of an IDX file (LeCun's format: big-endian, type 8 is uint8)."""
    head = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(np.uint8).tobytes()


@pytest.fixture
def mnist(tmp_path, random):
    """The folder of a dataset in MNIST's form: 40 training and 20 test images of 28 x 28."""
    (tmp_path / "raw").mkdir()
    for prefix, count in (("train", 40), ("t10k", 20)):
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = random.permutation(np.arange(count) % 10)
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            path = tmp_path / "raw" / f"{prefix}-{name}-ubyte.gz"
            path.write_bytes(gzip.compress(idx(array), compresslevel=1))
    return tmp_path


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "kmnist"])
def test_idx_files_come_back_as_they_were(mnist, name):
    record = prepare(Dataset(name=name), mnist)
    assert record["classes"] == list(SOURCES[name].classes)
    assert record["shape"] == [1, 28, 28]
    for part, prefix in (("train", "train"), ("test", "t10k")):
        found = open_part(mnist / part)
        for kind, array in (("images-idx3", found.inputs[..., 0]), ("labels-idx1", found.targets)):
            path = mnist / "raw" / f"{prefix}-{kind}-ubyte.gz"
            assert gzip.decompress(path.read_bytes()) == idx(array)


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_a_cut_gz_is_named(mnist, refused, litter, keep):
    path = mnist / "raw" / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:keep])
    before = litter(mnist)
    with refused(path, "download again"):
        prepare(Dataset(name="mnist"), mnist)
    assert litter(mnist) == before


def test_a_gz_with_altered_bytes_is_named(mnist, refused):
    path = mnist / "raw" / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    for place in range(0, len(whole), len(whole) // 40):
        if place in range(4, 10):  # the time and the system it was packed on
            continue
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        with refused(path, "download again"):
            prepare(Dataset(name="mnist"), mnist)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00\x00",
        b"<html>not here</html>" * 20,
        idx(np.zeros((40, 28, 28)))[:-1],
        idx(np.zeros((40, 28, 28))) + b"\x00",
        idx(np.zeros(40)),
        b"\x00\x00\x0d" + idx(np.zeros((40, 28, 28)))[3:],
    ],
    ids=["nothing", "two bytes", "a web page", "short", "long", "labels", "floats"],
)
def test_a_gz_of_something_else_is_named(mnist, refused, content):
    path = mnist / "raw" / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(content))
    with refused(path, "download again"):
        prepare(Dataset(name="mnist"), mnist)


@pytest.mark.parametrize("count", [39, 41])
def test_another_number_of_labels_than_images_is_refused(mnist, refused, litter, count):
    path = mnist / "raw" / "train-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(idx(np.arange(count) % 10)))
    before = litter(mnist)
    with refused(mnist / "raw", "train-*", f"{count} labels", "40 images"):
        prepare(Dataset(name="mnist"), mnist)
    assert litter(mnist) == before


def test_a_missing_file_is_named(mnist, refused):
    path = mnist / "raw" / "t10k-labels-idx1-ubyte.gz"
    path.unlink()
    with refused(path):
        prepare(Dataset(name="mnist"), mnist)


# CIFAR


def cifar(path, files):
    """Write an archive as the University of Toronto packs it; `files` maps names to records."""
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for name, records in files.items():
            entry = tarfile.TarInfo(f"cifar-binary/{name}")
            entry.size = records.size
            tar.addfile(entry, io.BytesIO(records.tobytes()))


def records(random, labels):
    """Return CIFAR's records: bytes of labels, then three planes of 32 rows of 32 pixels."""
    labels = np.asarray(labels, np.uint8).reshape(len(labels), -1)
    pixels = random.integers(0, 256, (len(labels), 3 * 32 * 32), dtype=np.uint8)
    return np.concatenate([labels, pixels], axis=1)


def assert_same(part, found, labels_before):
    assert np.array_equal(part.targets, found[:, labels_before - 1])
    for i, channel, row, column in ((0, 0, 0, 0), (1, 1, 2, 3), (3, 2, 31, 30), (5, 0, 17, 31)):
        place = labels_before + channel * 1024 + row * 32 + column
        assert part.inputs[i, row, column, channel] == found[i, place]
    assert part.inputs.sum() == found[:, labels_before:].sum()


def test_cifar10_is_read_in_the_order_of_its_files(tmp_path, random):
    (tmp_path / "raw").mkdir()
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    files = {name: records(random, random.permutation(10)) for name in names}
    shuffled = {"batches.meta.txt": np.frombuffer(b"cat\n", np.uint8)}
    shuffled |= {name: files[name] for name in reversed(names)}
    cifar(tmp_path / "raw" / "cifar-10-binary.tar.gz", shuffled)
    record = prepare(Dataset(name="cifar10"), tmp_path)
    assert record["shape"] == [3, 32, 32]
    assert record["classes"][3] == "cat"
    train = np.concatenate([files[name] for name in names[:-1]])
    assert_same(open_part(tmp_path / "train"), train, 1)
    assert_same(open_part(tmp_path / "test"), files["test_batch.bin"], 1)


def test_cifar100_is_read_with_its_fine_labels(tmp_path, random):
    (tmp_path / "raw").mkdir()
    coarse = random.integers(0, 20, 100)
    files = {
        name: records(random, np.stack([coarse, random.permutation(100)], axis=1))
        for name in ("train.bin", "test.bin")
    }
    cifar(tmp_path / "raw" / "cifar-100-binary.tar.gz", files)
    record = prepare(Dataset(name="cifar100"), tmp_path)
    assert len(record["classes"]) == 100
    assert_same(open_part(tmp_path / "train"), files["train.bin"], 2)
    assert_same(open_part(tmp_path / "test"), files["test.bin"], 2)


def test_a_cifar_archive_that_is_not_whole_is_named(tmp_path, random, refused):
    (tmp_path / "raw").mkdir()
    path = tmp_path / "raw" / "cifar-10-binary.tar.gz"
    train, test = (records(random, np.arange(10)) for _ in range(2))
    cifar(path, {"data_batch_1.bin": train, "test_batch.bin": test})
    whole = path.read_bytes()
    prepare(Dataset(name="cifar10"), tmp_path)
    middle = len(whole) // 2
    altered = whole[:middle] + bytes(100) + whole[middle + 100 :]
    for content in (b"", whole[:100], whole[:middle], altered, b"plain text" * 100):
        path.write_bytes(content)
        with refused(path, "download again"):
            prepare(Dataset(name="cifar10"), tmp_path)
    for files in (
        {"data_batch_1.bin": train},
        {"data_batch_1.bin": train.reshape(-1)[:-1], "test_batch.bin": test},
        {"readme": train},
    ):
        cifar(path, files)
        with refused(path, "download again"):
            prepare(Dataset(name="cifar10"), tmp_path)
    path.unlink()
    with refused(path):
        prepare(Dataset(name="cifar10"), tmp_path)


def test_a_label_out_of_range_is_named_by_its_sample(tmp_path, random, refused):
    (tmp_path / "raw").mkdir()
    train, test = (records(random, np.arange(10)) for _ in range(2))
    train[7, 0] = 10
    cifar(
        tmp_path / "raw" / "cifar-10-binary.tar.gz",
        {"data_batch_1.bin": train, "test_batch.bin": test},
    )
    with refused("cifar10: sample 7", "label 10", "0 to 9"):
        prepare(Dataset(name="cifar10"), tmp_path)


# arrays of one's own


@pytest.fixture
def npz(tmp_path):
    """A function that writes own.npz and prepares it."""

    def run(fraction=0.2, **arrays):
        path = tmp_path / "own.npz"
        np.savez(path, **arrays)
        return prepare(Dataset(name="npz", path=str(path), test_fraction=fraction), tmp_path / "o")

    return run


def some(count, classes=3, shape=(4, 5, 3)):
    """Return images that are all different, and labels."""
    images = np.arange(count * np.prod(shape)).reshape(count, *shape) % 251
    return images.astype(np.uint8), np.arange(count) % classes


def test_an_npz_with_a_test_part_keeps_it(npz, tmp_path):
    images, labels = some(9)
    test_images, test_labels = some(6)
    record = npz(
        images=images,
        labels=labels.astype(np.uint8),
        test_images=test_images[::-1],
        test_labels=test_labels,
    )
    assert record["name"] == "npz-own.npz"
    assert record["shape"] == [3, 4, 5]
    assert record["classes"] == ["0", "1", "2"]
    train, test = open_part(tmp_path / "o" / "train"), open_part(tmp_path / "o" / "test")
    assert np.array_equal(train.inputs, images)
    assert np.array_equal(train.targets, labels)
    assert np.array_equal(test.inputs, test_images[::-1])
    assert np.array_equal(test.targets, test_labels)


def test_an_npz_of_grey_images_gets_one_channel(npz, tmp_path):
    images, labels = some(12, shape=(4, 5))
    assert npz(images=images, labels=labels)["shape"] == [1, 4, 5]
    assert open_part(tmp_path / "o" / "train").inputs.shape == (9, 4, 5, 1)


@given(
    st.lists(st.integers(0, 3), min_size=8, max_size=80).filter(
        lambda labels: min(np.bincount(labels)) >= 2
    ),
    st.floats(0.01, 0.6),
)
@settings(max_examples=15)
def test_the_split_is_stratified_disjoint_and_whole(labels, fraction):
    labels = np.array(labels)
    ids = np.arange(len(labels), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "own.npz"
        np.savez(path, images=ids[:, None, None], labels=labels)
        found = []
        for again in ("1", "2"):
            output = Path(folder) / again
            prepare(Dataset(name="npz", path=str(path), test_fraction=fraction), output)
            found.append([open_part(output / part) for part in ("train", "test")])
            found[-1] = [(p.inputs.reshape(-1), np.array(p.targets)) for p in found[-1]]
    (train, train_labels), (test, test_labels) = found[0]
    assert sorted([*train, *test]) == list(ids)
    assert np.array_equal(labels[train], train_labels)
    assert np.array_equal(labels[test], test_labels)
    for label in set(labels):
        count = int((labels == label).sum())
        assert (test_labels == label).sum() == max(1, round(fraction * count))
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize(
    ("test", "validation"),
    [(0.2, 0), (0.3, 0), (0.6, 0), (0.7, 0.1), (0.2, 0.5), (0.15, 0.25), (0.01, 0.03)],
)
def test_groups_have_the_share_that_is_asked_for(test, validation):
    groups, labels = np.repeat(np.arange(100), 10).astype(str), np.arange(1000) % 2
    keys = {"test_fraction": test, "validation_fraction": validation}
    dataset = Dataset(name="table", path="t.csv", group="patient", **keys)
    which = split(labels, dataset, ["a", "b"], "t.csv", groups=groups)
    for part, share in ((1, validation), (2, test)):
        assert abs((which == part).mean() - share) <= 0.01
        assert abs((which[labels == 0] == part).mean() - share) <= 0.01
    assert {len(set(of)) for of in which.reshape(100, 10)} == {1}
    fewer = Dataset(name="table", path="t.csv", group="patient", test_fraction=test)
    alone = split(labels, fewer, ["a", "b"], "t.csv", groups=groups)
    assert np.array_equal(alone == 2, which == 2)


@pytest.mark.parametrize(("count", "validation"), [(1, 0), (2, 0.1)])
def test_groups_that_leave_none_for_training_are_refused(refused, count, validation):
    groups, labels = np.repeat(np.arange(count), 10).astype(str), np.arange(10 * count) % 2
    keys = {"path": "t.csv", "group": "patient", "validation_fraction": validation}
    dataset = Dataset(name="table", **keys)
    with refused("t.csv: cannot keep groups together in", "leave any for training"):
        split(labels, dataset, ["a", "b"], "t.csv", groups=groups)


IMAGES, LABELS = some(12)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"images": IMAGES}, ["no array 'labels'", "it has images"]),
        ({"labels": LABELS}, ["no array 'images'", "it has labels"]),
        ({"x": LABELS, "y": LABELS}, ["no array 'images'", "it has x, y"]),
        ({"images": IMAGES, "labels": LABELS, "test_labels": LABELS}, ["'test_images'"]),
        ({"images": IMAGES / 255, "labels": LABELS}, ["images is float64", "expected uint8"]),
        ({"images": LABELS, "labels": LABELS}, ["images is int64 (12,)"]),
        ({"images": IMAGES, "labels": LABELS[:-1]}, ["labels is int64 (11,)", "expected 12"]),
        ({"images": IMAGES, "labels": LABELS[:, None]}, ["labels is int64 (12, 1)"]),
        ({"images": IMAGES, "labels": LABELS / 1}, ["labels is float64 (12,)"]),
        ({"images": IMAGES, "labels": LABELS - 1}, ["sample 0 has label -1", "expected 0 to 1"]),
        ({"images": IMAGES, "labels": LABELS - 5}, ["sample 0 has label -5"]),
        ({"images": IMAGES, "labels": LABELS * 2}, ["class '1' (1) has no image"]),
        ({"images": IMAGES, "labels": LABELS * 10**12}, ["class", "has no image"]),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, ["images is empty"]),
        ({"images": IMAGES[:, :0], "labels": LABELS}, ["images", "(12, 0, 5, 3)"]),
        (
            {"images": IMAGES[:3], "labels": LABELS[:3]},
            ["class '0' has too few images, 1,", "test_fraction"],
        ),
        ({"images": IMAGES, "labels": LABELS.astype(object)}, ["not an .npz of plain arrays"]),
        (
            {"images": IMAGES, "labels": LABELS, "test_images": IMAGES, "test_labels": LABELS + 1},
            ["test: sample 2 has label 3", "expected 0 to 2"],
        ),
        (
            {
                "images": IMAGES,
                "labels": LABELS,
                "test_images": IMAGES[:, 1:],
                "test_labels": LABELS,
            },
            ["training images are [3, 4, 5]", "those of test [3, 3, 5]"],
        ),
    ],
)
def test_wrong_arrays_are_refused(npz, tmp_path, refused, arrays, words):
    with refused("own", *words):
        npz(**arrays)
    assert not (tmp_path / "o" / "manifest.json").exists()


def test_a_file_that_is_no_npz_is_named(tmp_path, refused):
    path = tmp_path / "own.npz"
    dataset = Dataset(name="npz", path=str(path))
    np.savez_compressed(path, images=IMAGES, labels=LABELS)
    whole = path.read_bytes()
    array = io.BytesIO()
    np.save(array, IMAGES)
    middle = whole[:80] + b"?" * 20 + whole[100:]
    for content in (None, b"", b"text", whole[: len(whole) // 2], middle, array.getvalue()):
        path.unlink() if content is None else path.write_bytes(content)
        with refused(path, "not an .npz of plain arrays"):
            prepare(dataset, tmp_path / "o")


# folders of images


@pytest.fixture
def folder(tmp_path):
    """A function that writes images (`name: array`) below own/ and prepares them."""

    def run(images):
        for name, pixels in images.items():
            path = tmp_path / "own" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
        return prepare(Dataset(name="imagefolder", path=str(tmp_path / "own")), tmp_path / "o")

    return run


def pictures(shape=(6, 5), classes=("cat", "dog"), count=5, prefix=""):
    """Return images that are all different, by name."""
    return {
        f"{prefix}{name}/{i}.png": np.full(shape, 20 * i + j, np.uint8)
        for j, name in enumerate(classes)
        for i in range(count)
    }


@pytest.mark.parametrize(("shape", "expected"), [((6, 5), [1, 6, 5]), ((6, 5, 3), [3, 6, 5])])
def test_images_of_a_folder_are_split_by_class(folder, tmp_path, shape, expected):
    images = pictures(shape)
    record = folder(images)
    assert record["name"] == "imagefolder-own"
    assert record["shape"] == expected
    assert record["classes"] == ["cat", "dog"]
    assert record["train"]["per_class"] == {"cat": 4, "dog": 4}
    assert record["test"]["per_class"] == {"cat": 1, "dog": 1}
    levels = []
    for part in ("train", "test"):
        found = open_part(tmp_path / "o" / part)
        assert found.inputs.shape[1:] == (*shape[:2], expected[0])
        levels += [
            (label, *np.unique(image))
            for image, label in zip(found.inputs, found.targets, strict=True)
        ]
    assert sorted(levels) == [(j, 20 * i + j) for j in range(2) for i in range(5)]


def test_colours_stay_in_their_order(folder, tmp_path):
    red = np.zeros((2, 3, 3), np.uint8)
    red[0, 1] = (200, 100, 50)
    folder({"a/1.png": red, "a/2.png": red})
    assert open_part(tmp_path / "o" / "train").inputs[0, 0, 1].tolist() == [200, 100, 50]


@pytest.mark.parametrize(
    ("mode", "channels"),
    [("P", 3), ("RGBA", 3), ("CMYK", 3), ("YCbCr", 3), ("LA", 1), ("1", 1)],
)
def test_images_of_other_modes_become_colour_or_grey(folder, tmp_path, mode, channels):
    suffix = "png" if mode in ("P", "RGBA", "LA", "1") else "tif"
    for i in range(2):
        path = tmp_path / "own" / "a" / f"{i}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (5, 6), (255, 255, 255)).convert(mode).save(path)
    assert folder({})["shape"] == [channels, 6, 5]
    assert np.unique(open_part(tmp_path / "o" / "train").inputs) == [255]


def test_folders_train_and_test_are_the_parts(folder):
    record = folder(pictures(count=3, prefix="train/") | pictures(count=2, prefix="test/"))
    assert record["train"]["per_class"] == {"cat": 3, "dog": 3}
    assert record["test"]["per_class"] == {"cat": 2, "dog": 2}


def test_a_class_in_one_part_only_is_named(folder, tmp_path, refused):
    with refused(tmp_path / "own", "'dog'", "train/ and test/"):
        folder(pictures(prefix="train/") | pictures(classes=("cat",), prefix="test/"))


def test_a_bad_image_is_named(folder, tmp_path, refused, litter):
    images = pictures()
    folder(images)
    before = litter(tmp_path / "o")
    path = tmp_path / "own" / "dog" / "4.png"
    whole = path.read_bytes()
    flipped = whole[:45] + b"????" + whole[49:]
    for content in (b"", b"not an image", whole[:20], whole[: len(whole) - 25], flipped):
        path.write_bytes(content)
        with refused(tmp_path / "own", "dog/4.png: not a whole image", "dataset.bad"):
            prepare(Dataset(name="imagefolder", path=str(tmp_path / "own")), tmp_path / "o")
    # Old arrays may stay, but nothing says any more that they are the dataset.
    assert litter(tmp_path / "o") == [name for name in before if name != "manifest.json"]


def test_an_image_of_another_size_or_colour_is_named(folder, tmp_path, refused):
    for other, words in (
        ((6, 4), ["1 of 4 x 6 grey (dog/4.png)", "9 of 5 x 6 grey", "set dataset.size"]),
        ((6, 5, 3), ["1 of 5 x 6 colour (dog/4.png)", "9 of 5 x 6 grey", "set dataset.colour"]),
    ):
        with refused(tmp_path / "own", *words):
            folder(pictures() | {"dog/4.png": np.zeros(other, np.uint8)})


def test_an_empty_class_is_named(folder, tmp_path, refused):
    (tmp_path / "own" / "bird").mkdir(parents=True)
    with refused(tmp_path / "own", "bird"):
        folder(pictures())


def test_a_folder_without_classes_is_named(folder, tmp_path, refused):
    (tmp_path / "own").mkdir()
    with refused(tmp_path / "own"):
        folder({})


def test_a_class_of_one_image_is_refused(folder, refused):
    with refused("own", "class 'cat' has too few images, 1,", "test_fraction"):
        folder(pictures(classes=("dog",)) | pictures(classes=("cat",), count=1))
    with refused("own", "class 'bird' has too few images, 1,"):
        folder(pictures(classes=("bird",), count=1))


@pytest.mark.parametrize(("mode", "value"), [("I", 70_000), ("F", 300)])
def test_images_whose_range_nobody_knows_are_refused(folder, tmp_path, refused, mode, value):
    path = tmp_path / "own" / "dog" / "2.tif"
    path.parent.mkdir(parents=True)
    Image.new(mode, (5, 6), value).save(path)
    with refused(tmp_path / "own", "dog/2.tif", "whose range nobody knows", "8"):
        folder(pictures())


def test_bad_images_are_named_in_one_pass(folder, tmp_path, refused):
    folder(pictures(count=13))
    bad = [tmp_path / "own" / name / f"{i}.png" for name in ("cat", "dog") for i in range(0, 12, 2)]
    for path in bad:
        path.write_bytes(b"not an image")
    Image.new("L", (7, 7)).save(bad[1])
    with refused("11 of 26 images", "1 of 7 x 7 grey", "; and 1 more") as caught:
        prepare(Dataset(name="imagefolder", path=str(tmp_path / "own")), tmp_path / "o")
    names = [str(path.relative_to(tmp_path / "own")) for path in bad]
    assert sum(f"{name}: not a whole" in str(caught.value) for name in names) == 10


def test_images_come_in_the_order_of_torchvision(tmp_path):
    for name in ("a/9.png", "a/10.PNG", "a/b/1.jpg", "a/B/1.jpg", "a/b-c/1.png", "B/2.tif"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    (tmp_path / "a" / "notes.txt").write_text("no image")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "3.png").write_bytes(b"")
    (tmp_path / "a" / "link").symlink_to(tmp_path / "elsewhere")
    found = images_by_class(tmp_path)
    assert list(found) == ["B", "a", "elsewhere"]
    for name, paths in found.items():  # as ImageFolder goes through a class
        walked = sorted(os.walk(tmp_path / name, followlinks=True))
        files = [Path(root, file) for root, _, names in walked for file in sorted(names)]
        assert paths == [file for file in files if file.suffix != ".txt"]


def test_what_is_hidden_is_no_data(folder, tmp_path):
    expected = folder(pictures())
    for name in (".git/1.png", ".ipynb_checkpoints/1.png", "cat/.DS_Store", "cat/._1.png"):
        path = tmp_path / "own" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"hidden")
    assert folder({}) == expected


def test_what_is_no_file_is_refused_and_not_waited_for(folder, tmp_path, refused):
    images = pictures()
    folder(images)
    odd = tmp_path / "own" / "cat" / "x.png"
    os.mkfifo(odd)
    with refused(odd, "a fifo"):
        folder(images)
    odd.unlink()
    for target in ("nothing", "x.png"):
        odd.symlink_to(target)
        with refused(odd, "a link to nothing"):
            folder(images)
        odd.unlink()
    odd.symlink_to(tmp_path / "own")
    with refused(f"{odd}: is a link back"):
        folder(images)


# what was downloaded


def test_files_that_are_not_what_was_downloaded_are_refused(npz, mnist, tmp_path, refused):
    npz(images=IMAGES, labels=LABELS)
    dataset = Dataset(name="npz", path=str(tmp_path / "own.npz"))
    download(dataset, tmp_path / "o")
    prepare(dataset, tmp_path / "o")
    with refused(tmp_path / "own.npz", "had", "download again"):
        npz(images=IMAGES[::-1], labels=LABELS)

    path = mnist / "raw" / "train-labels-idx1-ubyte.gz"
    files = {p.name: {"sha256": sha256(p)} for p in (mnist / "raw").iterdir()}
    sources = mnist / "sources.json"
    for text in ("", "[]", '{"files": {}}', json.dumps({"dataset": "mnist", "files": files})):
        sources.write_text(text)
        if text[2:3] != "d":
            with refused(sources, "download again"):
                prepare(Dataset(name="mnist"), mnist)
    prepare(Dataset(name="mnist"), mnist)
    path.write_bytes(gzip.compress(idx(np.arange(40) % 5)))
    with refused(path, "had", "download again"):
        prepare(Dataset(name="mnist"), mnist)


def test_a_folder_that_is_not_what_was_looked_through_is_refused(folder, tmp_path, refused):
    expected = folder(pictures())
    (tmp_path / "own" / "notes.txt").write_text("of the whole")
    download(Dataset(name="imagefolder", path=str(tmp_path / "own")), tmp_path / "o")
    assert folder({}) == expected
    for name in ("cat/4.png", "cat/5.png"):
        with refused(tmp_path / "own", "had", "download again"):
            folder(pictures() | {name: np.ones((6, 5), np.uint8)})
    assert not (tmp_path / "o" / "manifest.json").exists()


# memory


def peak(function):
    """Return the MiB that were in use at once while `function` ran."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_images_or_their_number(npz, tmp_path):
    dataset = Dataset(name="npz", path=str(tmp_path / "own.npz"))
    for shape in ((4, 3000, 2000, 3), (20_000, 30, 40, 3)):  # 69 MiB each
        images, labels = np.zeros(shape, np.uint8), np.arange(shape[0]) % 2
        images[:, 3, 5, 1] = labels
        np.savez(tmp_path / "own.npz", images=images, labels=labels)
        assert peak(lambda: prepare(dataset, tmp_path / "o", threads=2)) < 40
        for part in ("train", "test"):
            found = open_part(tmp_path / "o" / part)
            assert np.array_equal(found.inputs[:, 3, 5, 1], found.targets)
            assert int(found.inputs.sum()) == int(found.targets.sum())


def member(head, content=b"", claimed=None):
    """Return an npz with `images` of this head and content, which claims another size."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": "|u1", "fortran_order": False, "shape": head}
    )
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", file.getvalue() + content)
        archive.writestr("labels.npy", npy(np.zeros(12, np.int64)))
    whole = packed.getvalue()
    if claimed is not None:
        size = len(file.getvalue()) + len(content)
        whole = whole.replace(struct.pack("<I", size), struct.pack("<I", claimed + size))
    return whole


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_an_npz_that_claims_more_than_it_has_takes_no_memory(tmp_path, refused):
    path = tmp_path / "own.npz"
    dataset = Dataset(name="npz", path=str(path))
    for whole in (
        member((12, 100_000, 100_000, 3)),
        member((10**30, 4, 4, 3)),
        member((12, 0, 4, 3)),
        member((12, -1, -1, 3)),
        member((12, 1, 1, 10**8), bytes(10**6)),
        member((12, 8000, 8000, 3), bytes(10), 12 * 8000 * 8000 * 3 - 10),
        member((12, 8000, 8000), bytes(10), 12 * 8000 * 8000 - 10),
    ):
        path.write_bytes(whole)
        with refused(path):
            assert peak(lambda: prepare(dataset, tmp_path / "o")) < 40
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", "no array")
        archive.writestr("labels", npy(LABELS))
    with refused(path, "not an .npz of plain arrays (images: "):
        prepare(dataset, tmp_path / "o")


def test_an_idx_file_that_unpacks_to_gigabytes_takes_no_memory(mnist, refused):
    for name, head in (("labels-idx1", (2**31,)), ("images-idx3", (40, 2**31, 2**31))):
        path = mnist / "raw" / f"train-{name}-ubyte.gz"
        whole = path.read_bytes()
        with gzip.open(path, "wb", compresslevel=1) as file:
            file.write(struct.pack(f">HBB{len(head)}I", 0, 8, len(head), *head))
            file.write(bytes(64 << 20))
        with refused("train"):
            assert peak(lambda: prepare(Dataset(name="mnist"), mnist)) < 40
        path.write_bytes(whole)


def test_other_layouts_are_refused(npz, refused):
    labels = np.arange(12) % 3
    with refused("(12, 3, 16, 16)", "looks like N x C x H x W", "transpose"):
        npz(images=np.zeros((12, 3, 16, 16), np.uint8), labels=labels)
    with refused("own.npz", "Fortran's order", "ascontiguousarray"):
        npz(images=np.asfortranarray(IMAGES), labels=LABELS)
    assert npz(images=np.zeros((12, 8, 8, 16), np.uint8), labels=labels)["shape"] == [16, 8, 8]
    assert npz(images=np.zeros((12, 3, 3, 3), np.uint8), labels=labels)["shape"] == [3, 3, 3]


def test_drafts_of_a_killed_stage_are_removed(digits, tmp_path, litter):
    prepare(Dataset(), tmp_path)
    whole = litter(tmp_path)
    for name in ("train/.images.npy-ab12", "test/.labels.npy-x_", ".manifest.json-9"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").write_bytes(b"half")
    prepare(Dataset(), tmp_path)
    assert litter(tmp_path) == whole
