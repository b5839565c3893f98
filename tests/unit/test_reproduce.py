"""reproduce: what is compared, what is refused, and what is said of another machine."""

import copy
import json
import shutil

import numpy as np
import pytest

from lockstep.distributed.world import World
from lockstep.files import sealed, unsealed, write_json
from lockstep.pipeline.config import Run
from lockstep.pipeline.record import SEAL, Training
from lockstep.pipeline.stages import reproduce
from lockstep.pipeline.stages.partition import partition
from lockstep.pipeline.stages.train import train
from lockstep.provenance import CAPS, code_of_training
from tests.damage import change_manifest

pytestmark = pytest.mark.usefixtures("arithmetic_as_it_was")

# Two epochs of a linear model: a second.
RUN = Run(model="linear", ranks=1, epochs=2, snapshots=1, shift=1)


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    """A run's folder, with the data and the shards it was trained on beside it."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(digits, folder / "data")
    partition(folder / "data", RUN.scheme, RUN.shards, RUN.seed, RUN.alpha, folder / "shards")
    train(RUN, folder / "data", folder / "shards" / "shards.csv", folder / "run")
    return folder


@pytest.fixture
def record(trained):
    """What train.json says, to change."""
    return unsealed(json.loads((trained / "run" / "train.json").read_text()), SEAL)


def again(results, **where):
    places = {"data": None, "partition": None, "output": None} | where
    return reproduce.reproduce(results, **places)


def write(folder, record):
    folder.mkdir()
    write_json(folder / "train.json", sealed(record, SEAL))
    return folder


def test_a_run_gives_its_bits_again(trained, tmp_path, capsys):
    assert again(trained / "run", output=tmp_path / "again")
    said = capsys.readouterr().out.splitlines()
    assert [line.split("equal")[0].strip() for line in said[:-1]] == [
        name
        for name in reproduce.RESULTS
        if name != "BatchNorm statistics"  # it has none
    ]
    assert said[-1] == "the same bits with P = 1 as with P = 1"
    old, new = (folder / "model.safetensors" for folder in (trained / "run", tmp_path / "again"))
    assert old.read_bytes() == new.read_bytes()


def test_a_table_edited_by_hand_is_trained_with_and_recorded(trained, record, tmp_path, capsys):
    assert record["partition_edited"] is False
    shutil.copytree(trained / "shards", tmp_path / "shards")
    table = tmp_path / "shards" / "shards.csv"
    head, *rows = table.read_text().splitlines()
    table.write_text("\n".join([head, *reversed(rows), ""]))  # the same shards
    edited = train(RUN, trained / "data", table, tmp_path / "run")
    assert edited.partition_edited is True
    assert edited.parameters_sha256 == record["parameters_sha256"]
    assert f"{table}: is not what `partition` wrote" in capsys.readouterr().err


def test_nothing_is_left_behind_without_an_output(trained, litter):
    before = litter(trained)
    assert again(trained / "run")
    assert litter(trained) == before


def test_moved_data_and_shards_are_found_where_one_says(trained, record, tmp_path, refused):
    record |= {"data": "gone/data", "partition": "gone/shards.csv"}
    results = write(tmp_path / "run", record)
    with refused("data: gone/data", "not here", "--data"):
        again(results)
    with refused("partition: gone/shards.csv", "--partition"):
        again(results, data=trained / "data")
    shards = trained / "shards" / "shards.csv"
    assert again(results, data=trained / "data", partition=shards)


@pytest.mark.parametrize("name", reproduce.RESULTS)
def test_each_result_that_differs_is_named(name, record, tmp_path, capsys):
    record[reproduce.RESULTS[name]] = "0" * 64
    assert not again(write(tmp_path / "run", record))
    said = capsys.readouterr().out.splitlines()
    different = [line for line in said if "DIFFERENT" in line]
    assert len(different) == 1
    assert different[0].startswith(name)
    assert different[0].endswith("not 000000000000")
    assert "not as it was: nothing that the record has" in said


def test_another_seed_gives_other_weights(record, tmp_path, capsys):
    record["configuration"]["seed"] = 1
    assert not again(write(tmp_path / "run", record))
    said = capsys.readouterr().out
    assert "weights               DIFFERENT" in said
    assert "history               DIFFERENT" in said


def test_other_data_are_refused(trained, tmp_path, refused):
    shutil.copytree(trained / "data", tmp_path / "data")
    images = np.load(tmp_path / "data" / "train" / "images.npy")
    images[0, 0, 0, 0] ^= 1
    np.save(tmp_path / "data" / "train" / "images.npy", images)
    with refused("train/images.npy", "SHA-256", "prepare"):
        again(trained / "run", data=tmp_path / "data")


def test_data_of_another_scale_or_other_classes_are_refused(trained, tmp_path, refused):
    shutil.copytree(trained / "data", tmp_path / "data")
    path = tmp_path / "data" / "manifest.json"
    for name, value in (("mean", [0.5]), ("std", [0.5]), ("classes", list("9876543210"))):
        shutil.copy(trained / "data" / "manifest.json", path)
        change_manifest(tmp_path / "data", **{name: value})
        with refused(path, "not of the data", "run/train.json", "--data"):
            again(trained / "run", data=tmp_path / "data")


def test_other_shards_are_refused(trained, tmp_path, refused):
    partition(trained / "data", RUN.scheme, RUN.shards, RUN.seed + 1, RUN.alpha, tmp_path)
    with refused(tmp_path / "shards.csv", "has SHA-256", "train.json", "--partition"):
        again(trained / "run", partition=tmp_path / "shards.csv")


def test_records_that_cannot_be_compared_are_refused(trained, record, tmp_path, refused):
    with refused("train.json", "train again"):
        again(tmp_path)
    for key in Training.model_fields:
        old = {name: value for name, value in record.items() if name != key}
        with refused(f"train.json: not the record of a run of this version ({key}: is missing)"):
            again(write(tmp_path / key, old))
    for key, wrong in (("arithmetic", {}), ("ranks", [{}]), ("ranks", []), ("code", "1" * 16)):
        with refused(f"train.json: not the record of a run of this version ({key}", "train again"):
            again(write(tmp_path / f"{key}-{len(wrong)}", record | {key: wrong}))
    record["configuration"]["shards"] = 0
    with refused("train.json", "not the record of a run"):
        again(write(tmp_path / "damaged", record))


def test_a_folder_that_holds_anything_is_refused_and_left_as_it_is(trained, tmp_path, refused):
    shutil.copytree(trained / "run", tmp_path / "other")
    (tmp_path / "other" / "train.json").unlink()  # as while a run is trained
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for output in (trained / "run", tmp_path / "other"):
        with refused("output: ", output, "another folder"):
            again(trained / "run", output=output)
    with refused("output: ", "no folder"):
        again(trained / "run", output=trained / "run" / "train.json")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("how", [{"strategy": "ddp"}, {"reduction": "fast"}])
def test_bits_that_depend_on_the_ranks_want_their_number(how, record, tmp_path, refused):
    run = Run(**RUN.model_dump() | how | {"ranks": 4})
    two = World(0, 2, 0, 2, "mpirun")
    with refused(run.strategy, "was 4, not 2", "mpirun -n 4"):
        reproduce.as_launched(run, Training(**record), two, tmp_path)
    four = World(0, 4, 0, 4, "mpirun")
    launched = reproduce.as_launched(run, Training(**record), four, tmp_path)
    assert (launched.ranks, launched.backend) == (4, "gloo")


def test_the_launch_decides_the_ranks_and_the_record_the_kind_of_device(record, tmp_path, refused):
    far = {"backend": "mpi4py", "init_method": "tcp://far:1"}
    run = Run(**RUN.model_dump() | far)
    launched = reproduce.as_launched(run, Training(**record), World(0, 4, 0, 4, "mpirun"), tmp_path)
    changed = {"ranks": 4, "device": "cpu", "oversubscribe": True}
    assert launched == RUN.model_copy(update=changed)
    record["ranks"][0]["device"] = "NVIDIA H100"
    world = World(0, 1, 0, 1, "python")
    assert reproduce.as_launched(RUN, Training(**record), world, tmp_path).device == "cuda"
    with refused("5 ranks cannot have a shard each of 4"):
        reproduce.as_launched(RUN, Training(**record), World(0, 5, 0, 5, "mpirun"), tmp_path)


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("versions", "numpy"), "numpy: {} here, other in the record"),
        (
            ("code", "lockstep/pipeline/optim.py"),
            "code: other than in the record is lockstep/pipeline/optim.py",
        ),
        (("arithmetic", "instruction_set"), "instruction set: {} here, other in the record"),
        (("arithmetic", "threads"), "threads: {} here, other in the record"),
        (("arithmetic", "flush_denormal"), "flush denormal: {} here, other in the record"),
        (("initial_sha256",), "initial weights: {:.12} here, other in the record"),
        (("arithmetic", "libraries", "onednn"), "onednn: {} here, other in the record"),
        (("arithmetic", "caps", CAPS[0]), f"{CAPS[0]}: not set here, other in the record"),
        (("ranks", 0, "processor"), "processor: {} here, other in the record"),
        (("ranks", 0, "device"), "device: {} here, other in the record"),
    ],
)
def test_what_is_not_as_it_was_has_a_line(path, line, record, monkeypatch):
    def found(record, now):
        return list(reproduce.differences(Training(**record), Training(**now)))

    now = copy.deepcopy(record)
    assert found(record, now) == []
    place = record
    for key in path[:-1]:
        place = place[key]
    here = place.get(path[-1])
    place[path[-1]] = other = "0" * 64 if path == ("initial_sha256",) else "other"
    assert found(record, now) == [line.format(here).replace("other in the", f"{other:.12} in the")]


def test_the_record_has_the_code_that_was_run(record):
    assert record["code"] == code_of_training(RUN.strategy, "linear")
