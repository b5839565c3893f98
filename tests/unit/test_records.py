"""records: each stage compares what it reads with what the stage before wrote down of it."""

import copy as copies
import json
import shutil

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lockstep import tensors as state
from lockstep.errors import UserError
from lockstep.files import sealed, sha256, write_json
from lockstep.measure.probe import COLUMNS
from lockstep.pipeline.config import Run
from lockstep.pipeline.record import (
    SEAL,
    read_averaged,
    read_metrics,
    read_training,
    write_training,
)
from lockstep.pipeline.report import draw_launch, draw_prediction, draw_run, draw_summary
from lockstep.pipeline.stages.average import average
from lockstep.pipeline.stages.evaluate import evaluate
from lockstep.pipeline.stages.export import card
from lockstep.pipeline.stages.partition import partition
from lockstep.pipeline.stages.summarize import summarize
from lockstep.pipeline.stages.train import train
from tests.damage import change_manifest, change_record

pytestmark = pytest.mark.usefixtures("arithmetic_as_it_was")

RUN = Run(model="linear", ranks=1, epochs=3, snapshots=2)


@pytest.fixture(scope="module")
def finished(digits, tmp_path_factory):
    """A folder with data, shards, and a run that every stage was done of."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(digits, folder / "data")
    partition(folder / "data", RUN.scheme, RUN.shards, RUN.seed, RUN.alpha, folder / "shards")
    train(RUN, folder / "data", folder / "shards" / "shards.csv", folder / "run")
    do(folder, "average", "evaluate", "summarize", "draw")
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of it to damage."""
    return shutil.copytree(finished, tmp_path / "copy")


def do(folder, *stages):
    """Do stages of the run in `folder`."""
    results, data = folder / "run", folder / "data"
    known = {
        "average": lambda: average(results, data, threads=1),
        "evaluate": lambda: evaluate(results, data, ranks=1, threads=1),
        "summarize": lambda: summarize([results], folder / "summary.csv"),
        "draw": lambda: draw_run(results, folder / "shards" / "summary.csv", folder / "figures"),
        "predict": lambda: draw_prediction(results, folder / "check.json", folder / "figures"),
        "launch": lambda: draw_launch(folder / "check.json", folder / "figures"),
        "table": lambda: draw_summary(folder / "summary.csv", [], folder / "figures"),
    }
    for stage in stages:
        known[stage]()


def flip(path):
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) * 3 // 4] ^= 1
    path.write_bytes(content)


SNAPSHOT = "run/snapshots/epoch-0002.safetensors"


@pytest.mark.parametrize(
    ("stage", "file"),
    [
        ("average", SNAPSHOT),
        ("evaluate", "run/model.safetensors"),
        ("evaluate", "run/averaged.safetensors"),
        ("evaluate", "data/test/images.npy"),
        ("evaluate", "data/test/labels.npy"),
        ("summarize", "run/predictions.csv"),
        ("summarize", "run/confusion.csv"),
        ("draw", "run/confusion.csv"),
        ("draw", "run/history.csv"),
    ],
)
def test_a_flipped_bit_is_one_line_that_names_the_file(copy, refused, litter, stage, file):
    for name in (".metrics.json-abcdefgh", ".averaged.safetensors-abcdefgh"):
        (copy / "run" / name).mkdir()
        (copy / "run" / name / "left").write_text("by a killed process")
    flip(copy / file)
    before = {path: (copy / path).read_bytes() for path in litter(copy)}
    with refused(copy / file, "SHA-256", "again"):
        do(copy, stage)
    after = {path: (copy / path).read_bytes() for path in litter(copy)}
    assert after.items() <= before.items()  # nothing new, and nothing half-written


@pytest.mark.parametrize(
    ("stage", "file"),
    [
        ("average", SNAPSHOT),
        ("average", "run/train.json"),
        ("evaluate", "run/averaged.json"),
        ("evaluate", "run/averaged.safetensors"),
        ("summarize", "run/metrics.json"),
        ("draw", "run/history.csv"),
    ],
)
def test_a_missing_file_is_one_line_that_says_what_makes_it_again(copy, refused, stage, file):
    (copy / file).unlink()
    with refused(copy / file, "No such file", "again"):
        do(copy, stage)


def test_a_snapshot_of_another_run_is_no_snapshot_of_this_one(copy, refused):
    foreign = copy / "run/snapshots/epoch-0001.safetensors"
    shutil.copy(copy / SNAPSHOT, foreign)
    with refused(foreign, "no snapshot of the run"):
        do(copy, "average")


@pytest.mark.parametrize("stage", ["average", "evaluate"])
def test_other_data_than_those_of_the_training_are_refused(copy, refused, stage):
    manifest = copy / "data/manifest.json"
    sums = json.loads(manifest.read_text())["sha256"]
    for key, other in (
        ("sha256", {**sums, "train/images.npy": "0" * 64}),
        ("mean", [0.5]),
        ("classes", list("1023456789")),
    ):
        text = manifest.read_text()
        change_manifest(copy / "data", **{key: other})
        with refused(manifest, "train.json"):
            do(copy, stage)
        manifest.write_text(text)


def test_what_is_left_of_an_older_training_is_refused(copy, refused):
    change_record(copy / "run", snapshots_sha256="0" * 64)
    with refused("averaged.json", "not of the snapshots", "`average` again"):
        do(copy, "evaluate")
    for stage in ("summarize", "draw"):
        with refused("metrics.json", "not of the training", "`evaluate` again"):
            do(copy, stage)
    change_record(copy / "run", snapshots=None)
    with refused("train.json", "snapshots", "train again"):
        do(copy, "average")


def test_what_was_measured_of_another_average_is_refused(copy, refused):
    path = copy / "run/averaged.json"
    record = json.loads(path.read_text())
    write_json(path, record | {"model_sha256": "0" * 64})
    for stage in ("summarize", "draw"):
        with refused("metrics.json", "not of the average", "`evaluate` again"):
            do(copy, stage)


def test_a_card_has_what_was_measured_of_its_own_model_alone(copy, capsys):
    training = read_training(copy / "run")
    for model in ("last", "averaged"):
        of_test = getattr(read_metrics(copy / "run", training), model)
        said = card(copy / "run", training, model, "model.onnx")
        assert f"| accuracy, test set | {of_test.accuracy:.2%} |" in said
    assert "| 3 epochs; the mean of 2 epochs' weights, batch" in said.replace("trained ", "")
    path = copy / "run/metrics.json"
    measured = json.loads(path.read_text())
    write_json(path, measured | {"last": measured["last"] | {"accuracy": 0.0}})
    said = card(copy / "run", training, "last", "model.onnx")
    assert "| accuracy, test set | 0.00% |" in said
    change_record(copy / "run", model_sha256="0" * 64)
    said = card(copy / "run", read_training(copy / "run"), "last", "model.onnx")
    assert "test set" not in said
    assert "the card says nothing of the test set: " in capsys.readouterr().err


def test_scores_that_are_no_numbers_are_refused(copy, refused):
    path = copy / "run/model.safetensors"
    weights = state.read(path)
    weights["1.bias"][3] = torch.nan
    state.save(weights, path)
    change_record(copy / "run", model_sha256=sha256(path))
    (copy / "run/metrics.json").unlink()
    with refused(path, "sample 0 of the test set", "no numbers"):
        do(copy, "evaluate")
    assert not (copy / "run/metrics.json").exists()


def test_weights_of_another_model_are_refused_by_average(copy, refused):
    record = json.loads((copy / "run/train.json").read_text())
    change_record(copy / "run", configuration=record["configuration"] | {"model": "cnn"})
    with refused("run/snapshots", "not the weights of this model"):
        do(copy, "average")


@pytest.mark.slow
def test_a_second_time_gives_the_same_files_and_sweeps_away_what_was_left(finished, copy, litter):
    for name in (".metrics.json-abcdefgh", ".averaged.json-abcdefgh", ".confusion.csv-abcdefgh"):
        (copy / "run" / name).mkdir()
    (copy / ".summary.csv-abcdefgh").mkdir()
    (copy / "figures/.time.svg-abcdefgh").mkdir()
    do(copy, "average", "evaluate", "summarize", "draw")
    assert not list(copy.rglob("*-abcdefgh"))
    for path in litter(finished):
        assert (copy / path).read_bytes() == (finished / path).read_bytes(), path


def test_a_configuration_comes_back_from_a_record(tmp_path, write_records, refused):
    run = Run(seed=5, clip=1.5)
    write_records(tmp_path / "run", run)
    assert read_training(tmp_path / "run").configuration == run
    path = tmp_path / "run" / "train.json"
    change_record(tmp_path / "run", configuration=run.model_dump() | {"batch": 7})
    with refused(path, "configuration", "batch", "train again"):
        read_training(tmp_path / "run")
    path.unlink()
    with refused(path, "No such file", "train again"):
        read_training(tmp_path / "run")


@pytest.mark.parametrize("stage", ["summarize", "draw", "predict"])
@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, '{"configuration": {}}', "\xff"])
def test_a_record_that_is_none_is_one_line(copy, refused, stage, text):
    (copy / "run/train.json").write_bytes(text.encode("latin-1"))
    with refused(copy / "run/train.json", "not the record of a run", "train again"):
        do(copy, stage)


@pytest.mark.parametrize("stage", ["average", "evaluate", "summarize", "draw"])
def test_a_record_that_was_edited_is_refused(copy, refused, stage):
    path = copy / "run/train.json"
    whole = json.loads(path.read_text())
    for change in ({"seconds": 1.0}, {"record_sha256": "0" * 64}, {"more": 1}):
        write_json(path, whole | change)
        with refused(path, "changed after it was written", "train again"):
            do(copy, stage)
    write_json(path, {key: whole[key] for key in reversed(whole)})
    do(copy, stage)


@pytest.mark.parametrize("version", [None, 0, 2, "1", []])
def test_a_record_of_another_version_is_refused(copy, refused, version):
    change_record(copy / "run", version=version)
    with refused(copy / "run/train.json", "of this version (version: ", "train again"):
        do(copy, "summarize")
    record = json.loads((copy / "run/train.json").read_text())
    write_json(copy / "run/train.json", {k: v for k, v in record.items() if k != "version"})
    with refused(copy / "run/train.json", "(version: is missing)", "train again"):
        do(copy, "summarize")


def test_what_is_read_is_what_was_written(finished, tmp_path):
    training = read_training(finished / "run")
    write_training(tmp_path, training)
    assert read_training(tmp_path) == training
    assert (tmp_path / "train.json").read_bytes() == (finished / "run/train.json").read_bytes()


# Whatever is in a file, it is read right or refused in one line.

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(
        [0, -1, 2**31, 2**63, 10**30, 10**300, 1e308, -0.0, float("nan"), float("inf")]
    ),
    st.sampled_from(["", "9" * 5000, "\ud800", "\0", "<b>", [], {}, [[[]]], {"a": {}}]),
)


def places(value, path=()):
    """Yield the place of each value in nested dictionaries and lists."""
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in inside:
        yield (*path, key)
        if isinstance(inner, dict | list):
            yield from places(inner, (*path, key))


@given(st.data())
def test_a_record_with_anything_in_it_is_read_or_refused(finished, tmp_path_factory, data):
    results = finished / "run"
    name = data.draw(st.sampled_from(["train.json", "averaged.json", "metrics.json"]))
    record = copies.deepcopy(json.loads((results / name).read_text()))
    record.pop(SEAL, None)
    *above, key = data.draw(st.sampled_from(list(places(record))))
    where = record
    for step in above:
        where = where[step]
    where[key] = data.draw(ODD)
    folder = tmp_path_factory.mktemp("odd")
    for path in results.glob("*.*"):
        (folder / path.name).symlink_to(path)
    (folder / name).unlink()
    of_training = name == "train.json"
    (folder / name).write_text(json.dumps(sealed(record, SEAL) if of_training else record))
    try:
        training = read_training(folder)
        read_averaged(folder, training)
        found = read_metrics(folder, training)
    except UserError as error:
        assert str(folder / name) in str(error)
        assert len(str(error)) < 1000
    else:
        json.dumps([training.model_dump(), found.model_dump()])  # a path may be of any bytes
    shutil.rmtree(folder)


@given(st.data())
def test_weights_with_anything_in_their_header_are_read_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("odd") / "weights"
    state.save({"a": torch.zeros(2, 3), "b": torch.tensor(1)}, path)
    content = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, header - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        state.read(path)
    except UserError as error:
        assert str(path) in str(error)
    path.write_bytes(b"\xff" * 7 + b"\x7f" + content)  # a header of 9e18 bytes
    with pytest.raises(UserError):
        state.read(path)


CHECK = {"ranks": [{"host": "a", "cores": 2, "load": 0.5}] * 2, "mpi": "an MPI"}


@pytest.mark.parametrize(
    ("stage", "file", "content"),
    [
        ("draw", "shards/summary.csv", b"\xff\xfe\0"),
        ("draw", "shards/summary.csv", b"shard,label,samples\n0,0,x\n"),
        ("draw", "shards/summary.csv", b"shard,label,samples\n0,0," + b"9" * 400),
        ("table", "summary.csv", b""),
        ("table", "summary.csv", b"run,model_sha256\na,b\n"),
        ("launch", "check.json", b'{"ranks": 3}'),
        ("launch", "check.json", b'{"ranks": ' + b"[" * 100_000),
        ("launch", "check.csv", b"a,b\n1\n2,3,4\n"),
        ("predict", "check.csv", b"\xff"),
        ("predict", "check.json", b'{"ranks": [1, 2]}'),
    ],
)
def test_what_cannot_be_drawn_is_one_line(copy, refused, litter, stage, file, content):
    rows = [["gloo", "all_reduce", 8 * 4**i, 3, 1.0, 2.0 + i, 9.0 + i, 0.1, 0.1] for i in range(4)]
    write_json(copy / "check.json", CHECK)
    pd.DataFrame(rows, columns=list(COLUMNS)).to_csv(copy / "check.csv", index=False)
    if stage in ("launch", "predict"):
        do(copy, stage)  # as they are, they can be
    (copy / file).write_bytes(content)
    before = litter(copy)
    with refused(copy / file, "again"):
        do(copy, stage)
    assert litter(copy) == before
