"""Images of any size and mode, listed in any way, and the parts that they are split into."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from lockstep.errors import UserError
from lockstep.pipeline.config import Dataset
from lockstep.pipeline.data.arrays import open_part
from lockstep.pipeline.data.function import yielded
from lockstep.pipeline.data.manifest import check_files, read_manifest
from lockstep.pipeline.data.photos import folder
from lockstep.pipeline.data.pixels import Look, decode
from lockstep.pipeline.data.split import PARTS
from lockstep.pipeline.stages.download import download
from lockstep.pipeline.stages.prepare import for_terminal, prepare


def encoded(image, form="png", **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def photo(width, height, seed=0):
    """Return a colourful image that is smooth, as photos are."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


# pixels


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"])
@pytest.mark.parametrize("colour", ["auto", "rgb", "grey"])
def test_every_mode_becomes_what_is_asked_for(mode, colour):
    image = photo(20, 16)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    else:
        image = image.convert(mode)
    content = encoded(image, "tiff" if mode in ("CMYK", "YCbCr") else "png")
    found = decode(content, Look(colour=colour), "x")
    grey = colour == "grey" or (colour == "auto" and mode in ("1", "L", "LA", "I;16"))
    assert found.shape == (16, 20, 1 if grey else 3)
    assert found.dtype == np.uint8
    if mode not in ("1", "P"):
        known = np.asarray(photo(20, 16).convert("L")).astype(int)
        mean = np.asarray(Image.fromarray(found.squeeze()).convert("L")).astype(int)
        assert np.abs(mean - known).mean() < 6


def test_sixteen_bits_are_scaled_and_not_cut_off():
    values = np.array([[0, 128, 129, 256], [257, 32768, 65278, 65535]], np.uint16)
    found = decode(encoded(Image.fromarray(values)), Look(), "x")[..., 0]
    assert found.tolist() == [[0, 0, 1, 1], [1, 128, 254, 255]]


def test_transparent_places_are_white():
    image = Image.new("RGBA", (4, 2), (10, 20, 30, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    found = decode(encoded(image), Look(), "x")
    assert found[0, 1].tolist() == [255, 255, 255]
    assert found[0, 0].tolist() == [10, 20, 30]


@pytest.mark.parametrize("colour", ["auto", "rgb", "grey"])
@pytest.mark.parametrize(("clear", "expected"), [(0, [255, 4, 4]), (1028, [0, 255, 4])])
def test_the_transparent_value_of_16_bits_is_white(colour, clear, expected):
    values = np.array([[0, 1028, 1029]], np.uint16)
    content = encoded(Image.fromarray(values), transparency=clear)
    assert decode(content, Look(colour=colour), "x")[0, :, 0].tolist() == expected


@pytest.mark.parametrize("turned", range(1, 9))
def test_a_photo_is_turned_as_its_camera_says(turned):
    image = photo(64, 32)
    known = decode(encoded(image), Look(), "x").astype(int)
    back = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    lying = image.transpose(back[turned]) if turned > 1 else image
    exif = Image.Exif()
    exif[0x0112] = turned
    found = decode(encoded(lying, "jpeg", quality=95, exif=exif), Look(), "x").astype(int)
    assert found.shape == known.shape
    assert np.abs(found - known).mean() < 4


@pytest.mark.parametrize("size", [(24, 24), (16, 40), (300, 200)])
@pytest.mark.parametrize("resize", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("width_height", [(1600, 900), (90, 160)])
def test_photos_of_any_size_get_the_one_that_is_asked_for(size, resize, width_height):
    content = encoded(photo(*width_height), "jpeg", quality=95)
    found = decode(content, Look(size, resize), "x")
    assert found.shape == (*size, 3)
    assert np.array_equal(found, decode(content, Look(size, resize), "x"))
    black = (found.max(axis=2) == 0).mean()
    assert (black > 0.1) == (resize == "pad")


def test_the_middle_is_cropped_and_the_whole_is_padded():
    image = Image.new("RGB", (300, 100), "red")
    image.paste("blue", (100, 0, 200, 100))
    found = decode(encoded(image), Look((10, 10), "crop"), "x")
    assert np.array_equal(found[:, 1:-1], np.full((10, 8, 3), (0, 0, 255)))
    found = decode(encoded(image), Look((30, 30), "pad"), "x")
    assert found[:9].max() == found[21:].max() == 0
    assert found[15, 2].tolist() == [255, 0, 0]
    assert found[15, 15].tolist() == [0, 0, 255]


# a folder


@pytest.fixture
def own(tmp_path):
    """A folder with 12 photos of two classes, of all sizes, some of them on their side or grey."""
    for number in range(12):
        path = tmp_path / "own" / ("rose" if number % 3 else "tulip") / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = photo(40 + 13 * number, 90 - 5 * number, number)
        (image.convert("L") if number == 7 else image).save(path, quality=90)
    return tmp_path / "own"


def prepared(own, output, name="imagefolder", **keys):
    return prepare(Dataset(name=name, path=str(own), **keys), output)


def test_photos_are_prepared_and_described(own, tmp_path, refused):
    with refused(own, "images differ", "1 of", "set dataset.size (224, say) and dataset.colour"):
        prepared(own, tmp_path / "o")
    record = prepared(own, tmp_path / "o", size=[24, 32], colour="rgb", test_fraction=0.25)
    assert record["shape"] == [3, 24, 32]
    assert record["image"] == {"size": [24, 32], "resize": "crop", "colour": "rgb"}
    assert read_manifest(tmp_path / "o").image == record["image"]
    assert for_terminal(record) == (
        "9 + 3 images (train + test) of 3 x 24 x 32, 2 classes: rose 8, tulip 4"
    )
    files = pd.read_csv(tmp_path / "o" / "test" / "files.csv")
    part = open_part(tmp_path / "o" / "test")
    for row, image, label in zip(files.itertuples(), part.inputs, part.targets, strict=True):
        assert np.array_equal(decode(own / row.file, Look.of(record["image"]), "x"), image)
        assert row.label == record["classes"][label] == Path(row.file).parts[0]
    manifest = read_manifest(tmp_path / "o")
    check_files(tmp_path / "o", manifest, "test")
    with (tmp_path / "o" / "test" / "files.csv").open("a") as file:
        file.write("rose/9.jpg,rose\n")
    with refused("test/files.csv", "run `prepare` again"):
        check_files(tmp_path / "o", manifest, "test")


def test_what_was_decoded_stays_as_it_is_while_more_is(tmp_path):
    for number in range(500):
        part, name = "test" if number < 100 else "train", "rose" if number % 2 else "tulip"
        path = tmp_path / "own" / part / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo(8, 8, number).save(path)
    dataset = Dataset(name="imagefolder", path=str(tmp_path / "own"))
    decoded = folder(dataset, tmp_path, 1)
    held = list(decoded.rows)  # nothing has been stored when the last is decoded
    for part in ("train", "test"):
        images = np.concatenate([rows for of, rows in held if of == part])
        for file, image in zip(decoded.files[part]["file"], images, strict=True):
            assert np.array_equal(image, np.asarray(Image.open(tmp_path / "own" / file))), file


def test_bad_files_are_skipped_where_that_is_asked_for(own, tmp_path, capsys):
    for name in ("rose/1.jpg", "tulip/0.jpg"):
        (own / name).write_bytes((own / name).read_bytes()[:200])
    (own / "rose" / "new.heic").write_bytes(b"no image")
    keys = {"size": 16, "colour": "grey"}
    with pytest.raises(UserError, match=r"3 of 13 images .*new\.heic.*dataset\.bad to skip"):
        prepared(own, tmp_path / "o", **keys)
    record = prepared(own, tmp_path / "o", bad="skip", **keys)
    assert sorted(record["skipped"]) == ["rose/1.jpg", "rose/new.heic", "tulip/0.jpg"]
    assert sum(record[part]["samples"] for part in PARTS) == 10
    assert "skipped: rose/1.jpg" in capsys.readouterr().err
    for name in record["skipped"]:
        (own / name).unlink()
    assert prepared(own, tmp_path / "p", **keys)["sha256"] == record["sha256"]


def test_what_the_disk_has_no_room_for_is_refused(own, tmp_path, refused, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with refused("GB", "GB are free", "dataset.size"):
        prepared(own, tmp_path / "o", size=64, colour="rgb")
    assert not list((tmp_path / "o").rglob("*.npy"))


# the parts


def test_a_part_for_validation_is_taken_from_what_is_left_by_the_test(tmp_path):
    keys = {"name": "digits", "test_fraction": 0.2}
    one = prepare(Dataset(**keys), tmp_path / "a")
    two = prepare(Dataset(**keys, validation_fraction=0.1), tmp_path / "b")
    assert one["sha256"]["test/images.npy"] == two["sha256"]["test/images.npy"]
    assert one["validation"]["samples"] == len(open_part(tmp_path / "a" / "validation")) == 0
    assert two["validation"]["samples"] == 179
    assert min(two["validation"]["per_class"].values()) == 17
    whole = [
        np.concatenate([open_part(tmp_path / name / part).inputs for part in PARTS])
        for name in "ab"
    ]
    digests = [sorted(image.tobytes() for image in images) for images in whole]
    assert digests[0] == digests[1]


def test_folders_of_parts_are_taken(own, tmp_path):
    for part in ("train", "val", "test"):
        shutil.copytree(own, tmp_path / "parted" / part)
    record = prepared(tmp_path / "parted", tmp_path / "o", size=16, colour="rgb")
    assert [record[part]["samples"] for part in PARTS] == [12, 12, 12]
    shutil.rmtree(tmp_path / "parted" / "test")
    record = prepared(tmp_path / "parted", tmp_path / "o", size=16, colour="rgb")
    assert [record[part]["samples"] for part in PARTS] == [9, 12, 3]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["Train", "Test"], [12, 0, 12]),
        (["training", "testing"], [12, 0, 12]),
        (["TRAIN", "Dev", "notes"], [9, 12, 3]),
        (["train"], [9, 0, 3]),
    ],
)
def test_folders_of_parts_are_known_by_other_names(own, tmp_path, names, expected):
    for name in names:
        shutil.copytree(own, tmp_path / "parted" / name)
    record = prepared(tmp_path / "parted", tmp_path / "o", size=16, colour="rgb")
    assert record["classes"] == ["rose", "tulip"]
    assert [record[part]["samples"] for part in PARTS] == expected
    files = pd.read_csv(tmp_path / "o" / "train" / "files.csv")["file"]
    assert files.str.startswith(f"{names[0]}/").all()


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["validation", "test"], ["has test/ and validation/ and no train/", "expected train/"]),
        (["test"], ["has test/ and no train/"]),
        (["train", "val", "valid"], ["val/ and valid/ are both for validation"]),
        (["Train", "train"], ["Train/ and train/ are both for train"]),
    ],
)
def test_folders_of_parts_that_do_not_fit_are_refused(own, tmp_path, refused, names, words):
    for name in names:
        shutil.copytree(own, tmp_path / "parted" / name)
    with refused(f"{tmp_path / 'parted'}: ", *words):
        prepared(tmp_path / "parted", tmp_path / "o", size=16, colour="rgb")


def test_a_class_may_be_called_as_a_part_is(own, tmp_path):
    for old, new in (("rose", "train"), ("tulip", "bus")):
        (own / old).rename(own / new)
    assert prepared(own, tmp_path / "o", size=16, colour="rgb")["classes"] == ["bus", "train"]


def arrays(task, count, prefix):
    if task == "regression":
        inputs = np.arange(count * 4, dtype=np.float32).reshape(count, 4)
        return {f"{prefix}inputs": inputs, f"{prefix}targets": inputs[:, :1]}
    if task == "language":
        return {f"{prefix}tokens": np.arange(count * 5).reshape(count, 5) % 11}
    images = np.arange(count * 12, dtype=np.uint8).reshape(count, 2, 2, 3)
    return {f"{prefix}images": images, f"{prefix}labels": np.arange(count) % 2}


@pytest.mark.parametrize("task", ["classification", "regression", "language"])
def test_arrays_may_bring_any_part(task, tmp_path):
    path = tmp_path / "own.npz"
    for prefixes, expected in (
        (("",), [14, 2, 4]),
        (("", "test_"), [18, 2, 20]),
        (("", "validation_"), [16, 20, 4]),
        (("", "validation_", "test_"), [20, 20, 20]),
    ):
        np.savez(path, **{k: v for p in prefixes for k, v in arrays(task, 20, p).items()})
        dataset = Dataset(
            name="npz", task=task, path=str(path), validation_fraction=0.1, test_fraction=0.2
        )
        record = prepare(dataset, tmp_path / "o")
        assert [record[part]["samples"] for part in PARTS] == expected


# a table


def rows(own):
    files = sorted(own.rglob("*.jpg"))
    return pd.DataFrame(
        {
            "path": [str(file.relative_to(own)) for file in files],
            "label": [file.parent.name for file in files],
            "patient": [f"p{i // 2}" for i in range(len(files))],
        }
    )


def test_a_csv_lists_what_the_folder_has(own, tmp_path):
    keys = {"size": 16, "colour": "rgb"}
    known = prepared(own, tmp_path / "a", **keys)
    table = rows(own)
    table.to_csv(own / "all.csv", index=False)
    found = prepared(own / "all.csv", tmp_path / "b", "table", **keys)
    assert found["sha256"] == known["sha256"]
    assert found["classes"] == ["rose", "tulip"]
    table["split"] = ["train", "val", "test"] * 4
    table.to_csv(own / "all.csv", index=False)
    found = prepared(own / "all.csv", tmp_path / "b", "table", **keys)
    assert [found[part]["samples"] for part in PARTS] == [4, 4, 4]
    files = pd.concat(pd.read_csv(tmp_path / "b" / part / "files.csv") for part in PARTS)
    merged = files.merge(table, left_on="file", right_on="path")
    assert (merged["label_x"] == merged["label_y"]).all()


@pytest.mark.filterwarnings("ignore:The least populated class")
def test_groups_stay_together(own, tmp_path, refused):
    rows(own).to_csv(own / "all.csv", index=False)
    keys = {"size": 16, "colour": "rgb", "validation_fraction": 0.25, "test_fraction": 0.25}
    prepared(own / "all.csv", tmp_path / "o", "table", group="patient", **keys)
    found = {part: pd.read_csv(tmp_path / "o" / part / "files.csv") for part in PARTS}
    groups = [set(table["group"]) for table in found.values()]
    assert all(map(len, groups))
    assert len(set.union(*groups)) == sum(map(len, groups)) == 6
    with refused("all.csv", "no column 'hospital'", "path, label, patient"):
        prepared(own / "all.csv", tmp_path / "o", "table", group="hospital", **keys)


def test_a_group_that_the_tables_own_split_tears_is_named(own, tmp_path, refused):
    keys = {"size": 16, "colour": "rgb", "group": "patient"}
    table = rows(own)
    for parts in (["train", "test"], ["validation", "test"]):
        table["split"] = ["train"] * 8 + parts * 2
        table.to_csv(own / "all.csv", index=False)
        with refused("all.csv: group 'p4' is in", *(f"in {part}" for part in parts)):
            prepared(own / "all.csv", tmp_path / "o", "table", **keys)
    table["split"] = [
        "test" if patient in ("p3", "p5") else "train" for patient in table["patient"]
    ]
    table.to_csv(own / "all.csv", index=False)
    record = prepared(own / "all.csv", tmp_path / "o", "table", **keys)
    assert [record[part]["samples"] for part in PARTS] == [8, 0, 4]


def test_parquet_with_images_in_it_as_others_write_it(own, tmp_path):
    keys = {"size": 16, "colour": "rgb"}
    table = rows(own)
    known = prepared(own, tmp_path / "a", **keys)
    content = [(own / path).read_bytes() for path in table["path"]]
    names = ["rose", "tulip"]
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    schema = pa.schema(
        [
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("label", pa.int64()),
        ],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    cells = [{"bytes": one, "path": path} for one, path in zip(content, table["path"], strict=True)]
    labels = [names.index(label) for label in table["label"]]
    whole = pa.table({"image": cells, "label": labels}, schema=schema)
    parquet.write_table(whole, tmp_path / "one.parquet", row_group_size=5)
    found = prepared(tmp_path / "one.parquet", tmp_path / "b", "table", **keys)
    assert found["sha256"] == known["sha256"]
    assert found["classes"] == names

    (tmp_path / "set" / "data").mkdir(parents=True)
    mixed = whole.take([0, 8, 1, 9, 2, 3, 4, 5, 6, 10, 7, 11])
    for name, part in (("train", mixed[:8]), ("validation", mixed[8:10]), ("test", mixed[10:])):
        path = tmp_path / "set" / "data" / f"{name}-00000-of-00001.parquet"
        parquet.write_table(part, path)
    found = prepared(tmp_path / "set", tmp_path / "b", "table", **keys, test_fraction=0.5)
    assert [found[part]["samples"] for part in PARTS] == [8, 2, 2]


def write_cells(path, values, labels=None, names=None):
    """Write a Parquet file with a grey image of each value in it: None is no image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [
        b"none" if value is None else encoded(Image.new("L", (4, 4), value)) for value in values
    ]
    labels = [number % 2 for number in range(len(cells))] if labels is None else labels
    whole = pa.table({"image": cells, "label": labels})
    if names:
        features = {"info": {"features": {"label": {"names": names}}}}
        whole = whole.replace_schema_metadata({"huggingface": json.dumps(features)})
    parquet.write_table(whole, path)


@pytest.mark.parametrize("others", [["dog", "cat"], ["cat", "dog", "owl"], None])
def test_files_whose_schemas_name_other_classes_are_refused(tmp_path, refused, others):
    first, second = (tmp_path / "set" / f"{name}.parquet" for name in "ab")
    write_cells(first, range(4), names=["cat", "dog"])
    write_cells(second, range(4), names=others)
    with refused(f"{second}: ", f"not those of {first};"):
        prepared(tmp_path / "set", tmp_path / "o", "table")
    write_cells(second, range(4), names=["cat", "dog"])
    assert prepared(tmp_path / "set", tmp_path / "o", "table")["classes"] == ["cat", "dog"]


@pytest.mark.parametrize(
    "names",
    [
        ["train-0-of-1", "validation-0", "test_0"],
        ["train/0000", "val/0000", "test/0000"],
        ["default/Training/0000", "default/dev/0000", "default/testing/0000"],
    ],
)
def test_files_of_parquet_or_their_folders_say_which_part_they_are(tmp_path, names):
    for name, values in zip(names, ([1, 2, 3], [4, 5], [6, 7]), strict=True):
        write_cells(tmp_path / "set" / f"{name}.parquet", values)
    prepared(tmp_path / "set", tmp_path / "o", "table")
    levels = [open_part(tmp_path / "o" / part).inputs[:, 0, 0, 0].tolist() for part in PARTS]
    assert levels == [[1, 2, 3], [4, 5], [6, 7]]


def test_a_file_of_no_part_beside_others_that_have_one_is_named(tmp_path, refused):
    for name in ("train-0", "test-0", "extra"):
        write_cells(tmp_path / "set" / f"{name}.parquet", range(4))
    extra = tmp_path / "set" / "extra.parquet"
    with refused(f"{extra}: ", "which part it is", "test-0.parquet does (test)", "expected train"):
        prepared(tmp_path / "set", tmp_path / "o", "table")
    extra.unlink()
    assert prepared(tmp_path / "set", tmp_path / "o", "table")["test"]["samples"] == 4


def test_rows_of_files_of_one_name_are_told_apart_where_some_are_skipped(tmp_path):
    write_cells(tmp_path / "set" / "train" / "0.parquet", [0, None, 2, 3])
    write_cells(tmp_path / "set" / "test" / "0.parquet", [4, 5, 6, 7])
    record = prepared(tmp_path / "set", tmp_path / "o", "table", bad="skip")
    assert list(record["skipped"]) == ["train/0.parquet:1"]
    for part, expected in (("train", [0, 2, 3]), ("test", [4, 5, 6, 7])):
        assert open_part(tmp_path / "o" / part).inputs[:, 0, 0, 0].tolist() == expected
        files = pd.read_csv(tmp_path / "o" / part / "files.csv")["file"]
        assert files.str.startswith(f"{part}/0.parquet:").all()


def test_parquet_of_several_forms_is_refused_in_one_line(tmp_path, refused):
    folder = tmp_path / "set"
    folder.mkdir()
    keys = {"size": 8}
    parquet.write_table(pa.table({"path": ["a.png"], "label": ["x"]}), folder / "a.parquet")
    more = pa.table({"path": ["b.png"], "label": ["y"], "split": ["test"]})
    parquet.write_table(more, folder / "b.parquet")
    with refused("set", "'split'", "not in all of its 2 files"):
        prepared(folder, tmp_path / "o", "table", **keys)
    one = tmp_path / "one.parquet"
    parquet.write_table(pa.table({"path": ["a.png", "b.png"], "label": ["x", None]}), one)
    with refused(one, "row 2 has no label"):
        prepared(one, tmp_path / "o", "table", **keys)
    names = {"info": {"features": {"label": {"names": ["x", "y"]}}}}
    schema = pa.schema(
        [("path", pa.string()), ("label", pa.string())],
        metadata={"huggingface": json.dumps(names)},
    )
    parquet.write_table(pa.table({"path": ["a.png"], "label": ["x"]}, schema=schema), one)
    with refused(one, "label", "'x'", "its schema names"):
        prepared(one, tmp_path / "o", "table", **keys)


def test_a_folder_of_parquet_is_compared_with_what_was_looked_through(own, tmp_path, refused):
    folder = tmp_path / "set"
    table = rows(own)
    for name, some in (("a", table[:6]), ("b", table[6:])):  # files of one name
        (folder / name).mkdir(parents=True)
        paths = [str(own / path) for path in some["path"]]
        whole = pa.table({"path": paths, "label": list(some["label"])})
        parquet.write_table(whole, folder / name / "part.parquet")
    dataset = Dataset(name="table", path=str(folder), size="8", colour="rgb")
    download(dataset, tmp_path / "o")
    assert prepare(dataset, tmp_path / "o")["train"]["samples"] == 9
    parquet.write_table(whole.slice(1), folder / "b" / "part.parquet")
    with refused(folder, "had", "download again"):
        prepare(dataset, tmp_path / "o")


def write_parquet(path, frame):
    parquet.write_table(pa.Table.from_pandas(frame), path)


def write_struct(path, frame):
    """Write a Parquet file whose images are outside, as Hugging Face writes links to them."""
    cells = [{"bytes": None, "path": name} for name in frame["path"]]
    parquet.write_table(pa.table({"image": cells, "label": list(frame["label"])}), path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("all.csv", lambda path, frame: frame.to_csv(path, index=False)),
        ("all.parquet", write_parquet),
        ("all.parquet", write_struct),
    ],
)
def test_images_that_a_table_names_are_those_that_were_looked_through(
    own, tmp_path, refused, name, write
):
    write(own / name, rows(own))
    (own / "rose" / "1.jpg").unlink()
    (own / "rose" / "2.jpg").write_bytes(b"no image")
    dataset = Dataset(name="table", path=str(own / name), size="8", colour="rgb", bad="skip")
    assert download(dataset, tmp_path / "o")["files"][name]["images"]["files"] == 12
    expected = prepare(dataset, tmp_path / "o")
    assert len(expected["skipped"]) == 2
    for file, content in (
        ("tulip/3.jpg", encoded(photo(30, 30, 99), "jpeg")),
        ("rose/2.jpg", b"still no image"),
        ("rose/1.jpg", encoded(photo(30, 30, 98), "jpeg")),
    ):
        before = (own / file).read_bytes() if (own / file).exists() else None
        (own / file).write_bytes(content)
        with refused(f"{own / name}: the listing of its images has", "download again"):
            prepare(dataset, tmp_path / "o")
        assert not (tmp_path / "o" / "manifest.json").exists()
        if before is not None:
            (own / file).write_bytes(before)
    (own / "rose" / "1.jpg").unlink()
    assert prepare(dataset, tmp_path / "o") == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path,class\na.png,1\n", ["no column 'label'", "path, class"]),
        ("path,label\n", ["has no rows"]),
        ("path,label\na.png,\n", ["row 1 has no label"]),
        ("path,label,split\na.png,1,train\nb.png,1,holdout\n", ["row 2", "'holdout'", "train"]),
        ("path,label,split\na.png,1,test\n", ["no row has train"]),
        ("path,label\na.png,1\nb.png,1\n", ["2 of 2 images", "a.png", "No such file"]),
        ('path,label\n"a', ["cannot be read as a table"]),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_in_one_line(text, words, tmp_path, refused):
    (tmp_path / "t.csv").write_text(text)
    with refused("t.csv", *words):
        prepared(tmp_path / "t.csv", tmp_path / "o", "table", size=8)


# a function


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A function that writes a module of the user's, and returns the name of its function."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(body):
        (tmp_path / "mine.py").write_text(f"import numpy as np\n\ndef samples():\n{body}")
        sys.modules.pop("mine", None)
        return "mine:samples"

    return write


@pytest.mark.parametrize("image", ["np.zeros((4, 5), np.uint8)", "same"])
def test_a_function_yields_images_in_new_memory_or_the_same(module, tmp_path, image):
    name = module(
        f"    same = np.zeros((4, 5), np.uint8)\n"
        f"    for i in range(20):\n        image = {image}\n        image[:] = i\n"
        f"        yield image, 'ab'[i % 2], 'train' if i % 5 else 'test'\n"
    )
    decoded = yielded(Dataset(name="function", path=name), tmp_path, 1)
    held = np.concatenate([rows.reshape(-1, 20) for _, rows in decoded.rows])
    assert held[:, 0].tolist() == list(range(20))  # nothing was stored when the last was yielded
    record = prepared(name, tmp_path / "o", "function")
    assert record["shape"] == [1, 4, 5]
    assert record["classes"] == ["a", "b"]
    levels = [open_part(tmp_path / "o" / part).inputs.reshape(-1, 20) for part in PARTS]
    assert sorted(np.concatenate(levels)[:, 0]) == list(range(20))


@pytest.mark.parametrize(
    ("others", "fraction", "expected"),
    [
        (["test"], 0.1, [26, 4, 10]),
        (["test"], 0, [30, 0, 10]),
        (["val"], 0.1, [24, 10, 6]),
        (["val", "test"], 0.1, [20, 10, 10]),
        ([], 0.1, [28, 4, 8]),
    ],
)
def test_a_part_that_a_function_does_not_yield_is_taken(
    module, tmp_path, others, fraction, expected
):
    name = module(
        f"    others = {others}\n    for i in range(40):\n"
        f"        part = others[i // 10] if i < 10 * len(others) else 'train'\n"
        f"        yield np.full((4, 5), i, np.uint8), i % 2, *([part] if others else [])\n"
    )
    record = prepared(name, tmp_path / "o", "function", validation_fraction=fraction)
    assert [record[part]["samples"] for part in PARTS] == expected
    levels = [open_part(tmp_path / "o" / part).inputs[:, 0, 0, 0] for part in PARTS]
    assert sorted(np.concatenate(levels)) == list(range(40))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("    return []\n", "yields nothing"),
        ("    yield np.zeros((2, 2)), 1\n", "float64 (2, 2), expected uint8"),
        ("    yield 1\n", r"sample 0 is int, expected \(image, label\)"),
        (
            "    for i in range(4):\n        yield np.zeros((2, 2 + i), np.uint8), 0\n",
            r"sample 1 is \(2, 3, 1\)",
        ),
        (
            "    for i in range(9):\n"
            "        yield np.zeros((2, 2), np.uint8), np.random.default_rng().integers(9**9)\n",
            "too few images",
        ),
    ],
)
def test_a_function_that_yields_something_else_is_refused(module, body, said, tmp_path):
    said = said if "\\" in said else re.escape(said)
    with pytest.raises(UserError, match=said):
        prepared(module(body), tmp_path / "o", "function")


# Two images are decoded; then it says so, and waits for somebody to end it, or a process of it.
DECODES = """
import sys, time
from pathlib import Path
from lockstep.errors import UserError
from lockstep.pipeline.data.photos import Problems, _blocks
from lockstep.pipeline.data.pixels import Look

def sources():
    for count in range(100):
        print(count, flush=True)
        yield Path(sys.argv[1])
        time.sleep(0.02)

try:
    for _ in _blocks(sources(), ["x"] * 100, Look(), (2000, 1000, 3), 2, Problems(), {}):
        pass
except UserError as error:
    sys.exit(str(error))
"""


@pytest.mark.parametrize(
    ("whom", "status", "said"),
    [("parent", -signal.SIGKILL, ""), ("child", 1, "was killed, for want of memory perhaps")],
)
def test_when_one_of_those_that_decode_is_killed_none_is_left(tmp_path, whom, status, said):
    Image.new("RGB", (1000, 2000)).save(tmp_path / "x.png")
    running = subprocess.Popen(
        [sys.executable, "-c", DECODES, tmp_path / "x.png"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stdout is not None
    while running.stdout.readline() != "10\n":
        assert running.poll() is None
    children = psutil.Process(running.pid).children()
    assert len(children) == 2
    os.kill({"parent": running.pid, "child": children[0].pid}[whom], signal.SIGKILL)
    assert said in running.communicate(timeout=30)[1]
    assert running.returncode == status
    assert not psutil.wait_procs(children, timeout=10)[1]
