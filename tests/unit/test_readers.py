"""Whatever has become of a file, its reader is right, or says in one line what is wrong.

Never another exception, an endless wait, or memory for what is not there.
"""

import gzip
import io
import json
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

from lockstep.errors import UserError
from lockstep.pipeline.config import Dataset
from lockstep.pipeline.data.arrays import open_part
from lockstep.pipeline.data.decode import READERS
from lockstep.pipeline.data.manifest import read_manifest, write_manifest
from lockstep.pipeline.data.shards import is_edited, read_members
from lockstep.pipeline.stages.prepare import prepare

# MiB, far above what these little files need.
MOST = 64

EXAMPLES = settings(max_examples=30)

# Numbers, texts and forms that parsers trip over.
ODD = [b"", b"0", b"-1", b"1e999", b"9" * 40, b"9" * 5000, b"nan", b"null", b"[]", b"{}"]
ODD += [b'""', b"[" * 5000, b'{"a":' * 5000, b"\x00", b"\xff\xfe", b"\n", b",", b'"', b"PK\x03\x04"]


@st.composite
def damages(draw):
    """A function that damages bytes: by one to three cuts, flips, zeros or things put in."""
    steps = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["cut", "flip", "zero", "put", "head"]),
                st.floats(0, 1, exclude_max=True),
                st.integers(1, 255),
                st.sampled_from(ODD),
            ),
            min_size=1,
            max_size=3,
        )
    )

    def damage(whole):
        for kind, place, bits, odd in steps:
            # Most of what a reader can be misled by is at the beginning and at the end.
            at = int(place * len(whole))
            if kind == "head":
                at = min(bits, len(whole) - 1)
            if kind == "cut" or not whole:
                whole = whole[:at]
            elif kind == "put":
                whole = whole[:at] + odd + whole[at + bits % 9 :]
            else:
                byte = whole[at] ^ bits if kind != "zero" else 0
                whole = whole[:at] + bytes([byte]) + whole[at + 1 :]
        return whole

    return damage


def right_or_refused(read, path, whole, damage):
    """Return what `read` makes of the damaged file, or None where it refuses it properly."""
    path.write_bytes(damage(whole))
    tracemalloc.start()
    try:
        return read()
    except UserError as error:
        assert "\n" not in str(error)
        return None
    finally:
        peak = tracemalloc.get_traced_memory()[1] / 2**20
        tracemalloc.stop()
        assert peak < MOST


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


IMAGES = np.arange(12 * 5 * 4 * 3, dtype=np.uint8).reshape(12, 5, 4, 3)
LABELS = np.arange(12) % 3


@pytest.fixture(scope="module")
def folder():
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


# what stages leave for each other


@given(damages())
@EXAMPLES
def test_manifests(folder, damage):
    record = {
        "name": "x",
        "task": "classification",
        "shape": [3, 5, 4],
        "classes": ["a", "b"],
        "mean": [0.5] * 3,
    }
    record |= {"std": [0.25] * 3, "sha256": {"train/images.npy": "ab" * 32}}
    write_manifest(folder, record)
    known = read_manifest(folder)
    path = folder / "manifest.json"
    found = right_or_refused(lambda: read_manifest(folder), path, path.read_bytes(), damage)
    assert found in (None, known)


@pytest.mark.parametrize("name", ["images", "labels"])
@given(damage=damages())
@EXAMPLES
def test_arrays(folder, name, damage):
    part = folder / "train"
    part.mkdir(exist_ok=True)
    for kind, array in (("images", IMAGES), ("labels", LABELS)):
        (part / f"{kind}.npy").write_bytes(npy(array))
    path = part / f"{name}.npy"
    found = right_or_refused(lambda: open_part(part), path, path.read_bytes(), damage)
    if found:  # what is in them is compared by SHA-256
        assert len(found.inputs) == len(found.targets)
        assert (found.inputs.dtype, found.targets.dtype) == (np.uint8, np.int64)
        assert int(found.inputs.sum()) >= 0


@given(damages())
@EXAMPLES
def test_tables_of_shards(folder, damage):
    path = folder / "shards.csv"
    rows = [f"{i},{label},{i % 2}\n" for i, label in enumerate(LABELS)]
    whole = "".join(["sample,label,shard\n", *rows]).encode()
    members = right_or_refused(lambda: read_members(path, LABELS, 2), path, whole, damage)
    if members:
        assert sorted(np.concatenate(members)) == list(range(12))
        assert all(map(len, members))


@given(damages())
@EXAMPLES
def test_records_of_a_partition(folder, damage):
    table = folder / "table" / "shards.csv"
    table.parent.mkdir(exist_ok=True)
    table.write_text("sample,label,shard\n")
    whole = json.dumps({"shards_sha256": "ab" * 32}).encode()
    assert right_or_refused(
        lambda: is_edited(table), table.with_name("partition.json"), whole, damage
    )


@given(damages())
@EXAMPLES
def test_records_of_a_download(folder, damage):
    path = folder / "own.npz"
    np.savez(path, images=IMAGES, labels=LABELS)
    output = folder / "prepared"
    output.mkdir(exist_ok=True)
    whole = json.dumps({"dataset": "npz", "files": {"own.npz": {"sha256": "ab" * 32}}}).encode()
    dataset = Dataset(name="npz", path=str(path))
    assert (
        right_or_refused(lambda: prepare(dataset, output), output / "sources.json", whole, damage)
        is None
    )


# data


def decode(dataset, raw):
    """Return the labels and images that a reader makes of a dataset, by part."""
    decoded = READERS[dataset.task, dataset.name](dataset, raw, 1)
    pixels = {"train": [], "test": []}
    for part, some in decoded.rows:
        pixels[part].append(some.copy())
    images = {part: np.concatenate(some) for part, some in pixels.items() if some}
    for part in images:
        assert images[part].shape == (len(decoded.targets[part]), *decoded.shapes[part])
    return decoded.targets, images


def same(found, known):
    """Return whether what a reader made of a damaged dataset is what it makes of the whole one."""
    return all(
        np.array_equal(a[part], b[part]) for a, b in zip(found, known, strict=True) for part in b
    )


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@given(damage=damages())
@EXAMPLES
def test_npz(folder, save, damage):
    path = folder / "own.npz"
    dataset = Dataset(name="npz", path=str(path))
    save(path, images=IMAGES, labels=LABELS)
    known = decode(dataset, folder)
    found = right_or_refused(lambda: decode(dataset, folder), path, path.read_bytes(), damage)
    assert found is None or same(found, known)


@pytest.mark.parametrize("name", ["images", "labels"])
@given(damage=damages())
@EXAMPLES
def test_arrays_in_an_npz_whose_checksums_hold(folder, name, damage):
    path = folder / "own.npz"
    members = {"images": npy(IMAGES), "labels": npy(LABELS)}

    def read():
        with zipfile.ZipFile(path, "w") as archive:
            for member, whole in members.items():
                archive.writestr(
                    f"{member}.npy", (folder / "member").read_bytes() if member == name else whole
                )
        return decode(Dataset(name="npz", path=str(path)), folder)

    right_or_refused(read, folder / "member", members[name], damage)


def idx(array):
    head = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(np.uint8).tobytes()


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", ["images-idx3", "labels-idx1"])
@given(damage=damages())
@EXAMPLES
def test_idx(folder, name, packed, damage):
    for prefix in ("train", "t10k"):
        for kind, array in (("images-idx3", IMAGES[..., 0]), ("labels-idx1", LABELS)):
            (folder / f"{prefix}-{kind}-ubyte.gz").write_bytes(gzip.compress(idx(array), 1))
    path = folder / f"train-{name}-ubyte.gz"
    dataset = Dataset(name="mnist")
    known = decode(dataset, folder)
    if packed:  # the damage is in the file, or in what is packed in it
        found = right_or_refused(lambda: decode(dataset, folder), path, path.read_bytes(), damage)
        assert found is None or same(found, known)
    else:
        whole = gzip.decompress(path.read_bytes())
        right_or_refused(
            lambda: decode(dataset, folder), path, whole, lambda raw: gzip.compress(damage(raw), 1)
        )


@pytest.mark.parametrize("packed", [True, False])
@given(damage=damages())
@EXAMPLES
def test_cifar(folder, packed, damage):
    records = np.arange(10 * 3073, dtype=np.uint32).astype(np.uint8).reshape(10, 3073)
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        for name in ("data_batch_1.bin", "test_batch.bin"):
            entry = tarfile.TarInfo(name)
            entry.size = records.size
            tar.addfile(entry, io.BytesIO(records.tobytes()))
    path = folder / "cifar-10-binary.tar.gz"
    dataset = Dataset(name="cifar10")
    path.write_bytes(gzip.compress(plain.getvalue(), 1))
    known = decode(dataset, folder)
    if packed:
        found = right_or_refused(lambda: decode(dataset, folder), path, path.read_bytes(), damage)
        assert found is None or same(found, known)
    else:
        right_or_refused(
            lambda: decode(dataset, folder),
            path,
            plain.getvalue(),
            lambda raw: gzip.compress(damage(raw), 1),
        )


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp", "ppm", "webp"])
@given(damage=damages())
@EXAMPLES
@pytest.mark.filterwarnings("ignore")
def test_images(folder, suffix, damage):
    root = folder / suffix
    (root / "a").mkdir(parents=True, exist_ok=True)
    for number in range(3):
        Image.fromarray(IMAGES[number]).save(root / "a" / f"{number}.{suffix}")
    dataset = Dataset(name="imagefolder", path=str(root))
    path = root / "a" / f"1.{suffix}"
    right_or_refused(lambda: decode(dataset, folder), path, path.read_bytes(), damage)
