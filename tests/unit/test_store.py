"""Checkpoints in files: whole or not there, never garbage, and never another run's."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.checkpoint.state import Checkpoint, Progress
from lockstep.checkpoint.store import PARTS, Store, explain, fingerprint
from lockstep.errors import UserError
from tests.damage import cut_short, flipped, removed

ABOUT = {"configuration": {"lr": 0.1, "model": "cnn"}, "data": {"train": "0" * 64}, "code": "1"}


def make_checkpoint(step):
    """Return a checkpoint that has every kind of tensor, other ones at each step."""
    draw = torch.Generator().manual_seed(step)
    weight = torch.randn(3, 4, generator=draw)
    model = {
        "part.weight": weight,
        "tied/weight": weight.clone(),
        "norm.num_batches_tracked": torch.tensor(step),
        "half": weight.bfloat16(),
        "double": weight.double() / 3,
        "mask": weight > 0,
        "bytes": (weight * 9).to(torch.uint8),
        "nothing": torch.empty(0, 3),
        "odd numbers": torch.tensor([float("nan"), -0.0, 1e-45, float("inf")]),
    }
    optimizer = {
        name: {"step": torch.tensor(float(step)), "exp_avg": torch.randn(3, 4, generator=draw)}
        for name in ("part.weight", "tied/weight")
    }
    progress = Progress(
        step,
        [{"epoch": 1, "lr": 0.1 / 3, "loss": 2 / 7}],
        {"seconds": 1 / 3},
        [{"first_step": 0, "last_step": step, "hosts": ["a", "b"]}],
    )
    return Checkpoint(progress, model, optimizer, {"sums": torch.rand(2, 2, generator=draw)})


def bits(value):
    """Return a value that is equal only where all bits of a checkpoint are."""
    if isinstance(value, torch.Tensor):
        raw = value.contiguous().view(-1).view(torch.uint8).tolist()
        return value.dtype, tuple(value.shape), raw
    if isinstance(value, Mapping):
        return {key: bits(some) for key, some in value.items()}
    if isinstance(value, Checkpoint):
        return {key: bits(some) for key, some in vars(value).items()}
    return dataclasses.asdict(value) if isinstance(value, Progress) else value


@contextlib.contextmanager
def opened(root, about=ABOUT, keep=2):
    store = Store(root, about, keep)
    try:
        yield store
    finally:
        store.close()


def test_snapshots_that_are_kept_no_more_go_with_the_last_checkpoint_that_lists_them(tmp_path):
    def found():
        store.finish()
        return sorted(path.stem for path in (store.folder / "snapshots").iterdir())

    with opened(tmp_path, keep=1) as store:
        for number in (1, 2, 3):
            store.put_snapshot(f"epoch-{number}.safetensors", {"a": torch.ones(number)})
        store.put_snapshot("best-1.safetensors", {"a": torch.zeros(1)})
        store.put(make_checkpoint(1))
        store.keep_snapshots({"epoch-2.safetensors", "epoch-3.safetensors", "best-1.safetensors"})
        assert found() == ["best-1", "epoch-1", "epoch-2", "epoch-3"]  # to go on from step 1
    with opened(tmp_path, keep=1) as store:
        assert store.newest().progress.step == 1
        store.keep_snapshots({"epoch-3.safetensors", "best-1.safetensors"})
        store.put(make_checkpoint(2))
        assert found() == ["best-1", "epoch-3"]
    with opened(tmp_path, keep=1) as store:
        assert store.newest().progress.step == 2
        store.link_snapshots(tmp_path / "out", "epoch-*")
        assert [path.stem for path in (tmp_path / "out").iterdir()] == ["epoch-3"]
        assert store.snapshot("best-1.safetensors")["a"].tolist() == [0]
        with pytest.raises(UserError, match="no checkpoint lists it"):
            store.snapshot("best-2.safetensors")
        path = store.folder / "snapshots/best-1.safetensors"
        with flipped(path, -1), pytest.raises(UserError, match="SHA-256"):
            store.snapshot(path.name)


def steps(store):
    return [int(path.name[5:]) for path in sorted(store.folder.glob("step-*"))]


def fill(store, *numbers):
    for number in numbers:
        store.put(make_checkpoint(number))
    store.wait()


# A checkpoint and its folder.


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path, litter):
    with opened(tmp_path) as store:
        assert store.newest() is None
        fill(store, 7)
    with opened(tmp_path) as store:
        assert bits(store.newest()) == bits(make_checkpoint(7))
        names = sorted(["about.json", *(f"step-00000007/{name}" for name in PARTS)])
        assert litter(store.folder) == sorted([*names, "step-00000007/manifest.json"])


def test_the_last_ones_have_the_largest_numbers_however_many_digits_those_have(tmp_path):
    with opened(tmp_path) as store:
        fill(store, 99_999_999, 100_000_000)
        assert sorted(steps(store)) == [99_999_999, 100_000_000]
    with opened(tmp_path) as store:
        assert store.newest().progress.step == 100_000_000
        fill(store, 100_000_001)
        assert sorted(steps(store)) == [100_000_000, 100_000_001]


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_last_ones_are_kept(keep, tmp_path):
    with opened(tmp_path, keep=keep) as store:
        fill(store, 1, 2, 3, 4, 5)
        assert steps(store) == [1, 2, 3, 4, 5][-keep:]
        assert bits(store.newest()) == bits(make_checkpoint(5))


@pytest.mark.parametrize("keep", [1, 2])
def test_damaged_ones_leave_room_for_those_of_a_run_that_begins_again(keep, tmp_path, capsys):
    with opened(tmp_path, keep=keep) as store:
        fill(store, 10, 20)
        for path in store.folder.glob("step-*/model.safetensors"):
            path.write_bytes(b"")
    with opened(tmp_path, keep=keep) as store:
        assert store.newest() is None
        fill(store, 5)
        assert bits(store.newest()) == bits(make_checkpoint(5))
        fill(store, 10)
        assert bits(store.newest()) == bits(make_checkpoint(10))
        assert capsys.readouterr().err.count("damaged, and not used") == keep


def test_what_a_kill_has_left_is_cleaned_up(tmp_path, litter):
    with opened(tmp_path) as store:
        fill(store, 3)
        before = litter(store.folder)
        for name in (".step-00000004", ".step-00000002-old"):
            shutil.copytree(store.folder / "step-00000003", store.folder / name)
        draft = store.folder / "snapshots" / ".epoch-0001.safetensors-x1y2"
        draft.mkdir()
        (draft / "epoch-0001.safetensors").write_text("half")
    with opened(tmp_path) as store:
        assert litter(store.folder) == before
        assert bits(store.newest()) == bits(make_checkpoint(3))


def test_nothing_outside_the_folder_is_read(tmp_path, capsys):
    (tmp_path / "elsewhere").write_text("secret")
    with opened(tmp_path / "checkpoints") as store:
        fill(store, 3)
        path = store.folder / "step-00000003" / "manifest.json"
        manifest = json.loads(path.read_text())
        outside = ("../../elsewhere", str(tmp_path / "elsewhere"), "snapshots/../../../elsewhere")
        for name in (*outside, "step-00000002/model.safetensors", "snapshots/.."):
            path.write_text(json.dumps(manifest | {name: "0" * 64}))
            assert store.newest() is None
            said = capsys.readouterr().err
            assert "step-00000003: damaged" in said
            if name in outside:
                assert f"manifest.json lists {name}, which is no part of it" in said


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '"x"', "\xff", '{"a": 1}'])
def test_a_manifest_that_is_none_is_damage(text, tmp_path, capsys):
    with opened(tmp_path) as store:
        fill(store, 3)
        (store.folder / "step-00000003" / "manifest.json").write_text(text, encoding="latin-1")
        assert store.newest() is None
        assert "step-00000003: damaged, and not used" in capsys.readouterr().err


def test_a_folder_by_another_name_is_not_taken(tmp_path, capsys):
    with opened(tmp_path) as store:
        fill(store, 3)
        shutil.copytree(store.folder / "step-00000003", store.folder / "step-00000009")
        assert bits(store.newest()) == bits(make_checkpoint(3))
        assert "step-00000009: damaged" in capsys.readouterr().err


# Torn writes and flipped bits.


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A store with two checkpoints; the second one's manifest has one snapshot more."""
    with opened(tmp_path_factory.mktemp("two")) as store:
        for step in (1, 2):
            store.put_snapshot(f"epoch-000{step}.safetensors", make_checkpoint(step).model)
            fill(store, step)
        yield store


# What each file is part of, and what is left without it.
FILES = {
    **{f"step-00000002/{name}": (["step-00000002"], 1) for name in (*PARTS, "manifest.json")},
    **{f"step-00000001/{name}": ([], 2) for name in (*PARTS, "manifest.json")},
    "snapshots/epoch-0002.safetensors": (["step-00000002"], 1),
    "snapshots/epoch-0001.safetensors": (["step-00000002", "step-00000001"], None),
}


def expect(store, capsys, damaged, left):
    found = store.newest()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[0] for line in lines] == [f"{store.folder / name}" for name in damaged]
    assert all("damaged, and not used: " in line for line in lines)
    assert bits(found) == (None if left is None else bits(make_checkpoint(left)))


@pytest.mark.parametrize("name", FILES)
def test_what_is_damaged_is_named_and_the_one_before_is_used(name, two, capsys):
    path = two.folder / name
    size = path.stat().st_size
    for length in (0, 1, size // 2, size - 2):
        with cut_short(path, length):
            expect(two, capsys, *FILES[name])
    with removed(path):
        expect(two, capsys, *FILES[name])
    if path.name != "manifest.json":  # of which some bytes are only blanks
        for place in (0, 8, size // 2, size - 1):
            with flipped(path, place):
                expect(two, capsys, *FILES[name])
    expect(two, capsys, [], 2)


@pytest.mark.slow
@settings(max_examples=300)
@given(st.data())
def test_no_damage_is_ever_loaded(two, data):
    path = two.folder / data.draw(st.sampled_from(sorted(FILES)))
    place = data.draw(st.integers(0, path.stat().st_size - 1))
    bit = data.draw(st.sampled_from([None, *(1 << n for n in range(8))]))
    with cut_short(path, place) if bit is None else flipped(path, place, bit):
        found = two.newest()
    if path.name != "manifest.json":
        left = FILES[f"{path.parent.name}/{path.name}"][1]
        assert bits(found) == (None if left is None else bits(make_checkpoint(left)))
    else:
        assert bits(found) in [bits(make_checkpoint(step)) for step in (1, 2)]


# Whose a checkpoint is.


def test_fingerprints_are_equal_only_where_everything_is():
    again = json.loads(json.dumps(ABOUT))
    assert fingerprint(again) == fingerprint(dict(reversed(again.items())))
    others = [
        ABOUT | {"code": "2"},
        ABOUT | {"data": {"train": "1" * 64}},
        ABOUT | {"configuration": {"lr": 0.2, "model": "cnn"}},
        {**ABOUT, "more": None},
    ]
    assert len({fingerprint(about) for about in (ABOUT, *others)}) == 5


def test_others_checkpoints_are_named_with_what_differs_and_not_used(tmp_path):
    other = ABOUT | {"configuration": {"lr": 0.2, "model": "cnn"}, "code": "2"}
    with opened(tmp_path, other) as store:
        fill(store, 4)
        folder = store.folder
    with opened(tmp_path, ABOUT | {"more": 1}):  # it has none
        pass
    with opened(tmp_path) as store:
        assert store.newest() is None
        why = "other code, lr was 0.2, is 0.1"
        assert store.others() == [f"{folder}: checkpoints of another run, not used: {why}"]
        for damage in ("", "[]", "{"):
            (folder / "about.json").write_text(damage)
            (line,) = store.others()
            assert line.endswith("about.json cannot be read")
    assert explain(ABOUT, ABOUT) == []
    files = {"code": {"train.py": "1" * 16, "zoo/flowers.py": "2" * 16}}
    changed = {"code": files["code"] | {"zoo/flowers.py": "3" * 16}, "ranks": 2}
    assert explain(files, changed) == ["other code: zoo/flowers.py", "ranks was not set, is 2"]
    assert explain({"code": "1" * 16}, files) == ["other code"]
    long = {"model": "zoo.flowers:small_net", "data": "0123456789abcdef" * 4}
    assert explain(long, long | {"model": "zoo.flowers:large_net", "data": "f" * 64}) == [
        "data was 0123456789ab, is ffffffffffff",
        "model was zoo.flowers:small_net, is zoo.flowers:large_net",
    ]


# The lock.

HOLD = """
import sys
from collections.abc import Mapping
from pathlib import Path
from lockstep.checkpoint.store import Store
store = Store(Path(sys.argv[1]), {}, 2)
print("held", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def another_process(root):
    """Have another process hold the store while the context lasts."""
    words = [sys.executable, "-c", HOLD, str(root)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        try:
            yield other
        finally:
            other.kill()


@pytest.mark.slow
def test_what_a_live_process_holds_is_refused_until_it_is_dead(tmp_path, refused):
    with another_process(tmp_path) as other:
        with refused(f"process {other.pid} on {socket.gethostname()}", "wait for it"):
            Store(tmp_path, {}, 2)
        other.send_signal(signal.SIGKILL)
        other.wait()
        with opened(tmp_path, {}) as store:
            fill(store, 1)
            with refused(f"process {os.getpid()} on"):
                Store(tmp_path, {}, 2)
    with opened(tmp_path, {}) as store:
        assert bits(store.newest()) == bits(make_checkpoint(1))


@pytest.mark.slow
def test_another_configuration_is_refused_as_well_since_its_results_have_the_same_place(
    tmp_path, refused
):
    with another_process(tmp_path / "a") as other:
        with refused(f"process {other.pid}", "is training this very run"):
            Store(tmp_path / "a", ABOUT, 2)
        with opened(tmp_path / "b", ABOUT) as store:
            fill(store, 1)


# Disks that fail.


@contextlib.contextmanager
def mounted(folder, *words):
    """Mount something on a folder while the context lasts, which root alone can do."""
    try:
        subprocess.run(["mount", *words, folder], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"cannot mount here, which wants root: {error}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fails(store, capsys, *words):
    """See that saving fails in one line, and leaves nothing."""
    before = sorted(path for path in store.folder.rglob("*") if "step-" in str(path))
    store.put(make_checkpoint(2))
    with pytest.raises((OSError, UserError)):
        store.wait()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("checkpoint: ")
    assert line.endswith("the training goes on, and it is tried again")
    for word in words:
        assert word in line
    assert sorted(path for path in store.folder.rglob("*") if "step-" in str(path)) == before


def test_a_full_disk_loses_nothing_and_is_used_again_when_it_has_room(tmp_path, capsys):
    large = torch.zeros(8192)  # 32 kB
    with mounted(tmp_path, "-t", "tmpfs", "-o", "size=256k", "tmpfs"), opened(tmp_path) as store:
        store.put_snapshot("epoch-0001.safetensors", make_checkpoint(1).model)
        fill(store, 1)
        filler = tmp_path / "filler"
        for keep in (0, 4, 8, 12, 16):  # kB that are free: it fails at one file or another
            with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(b"0" * 4096)
            if not keep:
                with pytest.raises(OSError) as caught:
                    Store(tmp_path / "another", ABOUT, 2)
                assert str(tmp_path / "another") in str(caught.value)
            os.truncate(filler, filler.stat().st_size - keep * 1024)
            fails(store, capsys, str(tmp_path))
            assert bits(store.newest()) == bits(make_checkpoint(1))
            capsys.readouterr()
        os.truncate(filler, filler.stat().st_size - 4 * 1024)
        store.put_snapshot("epoch-0002.safetensors", make_checkpoint(2).model | {"large": large})
        with pytest.raises((OSError, UserError)):
            store.wait()
        assert "epoch-0002.safetensors" in capsys.readouterr().err
        filler.unlink()
        fill(store, 3)
        assert bits(store.newest()) == bits(make_checkpoint(3))
        store.link_snapshots(tmp_path / "linked")
        linked = sorted(path.name for path in (tmp_path / "linked").iterdir())
        assert linked == ["epoch-0001.safetensors", "epoch-0002.safetensors"]


def fail_once(store, step):
    """Remove the folder, and have something in its place while a checkpoint is to be written."""
    shutil.rmtree(store.root)
    store.root.write_text("in the way")
    store.put(make_checkpoint(step))
    with pytest.raises(OSError):
        store.wait()
    store.root.unlink()


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path, monkeypatch):
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    log = full.open("w")
    with opened(tmp_path / "checkpoints") as store:
        monkeypatch.setattr(sys, "stderr", log)
        fail_once(store, 1)
        fill(store, 2)
        assert bits(store.newest()) == bits(make_checkpoint(2))
    with pytest.raises(OSError):
        log.close()


def test_a_folder_of_one_configuration_that_is_removed_is_made_again(tmp_path, capsys):
    with opened(tmp_path) as store:
        fill(store, 1)
        shutil.rmtree(store.folder)
        fill(store, 2)
        assert f"{store.folder}: was removed while the run used it" in capsys.readouterr().err
        assert bits(store.newest()) == bits(make_checkpoint(2))


def test_a_disk_that_becomes_read_only_loses_nothing(tmp_path, capsys):
    with opened(tmp_path) as store:
        fill(store, 1)
        with mounted(tmp_path, "--bind", tmp_path):
            subprocess.run(["mount", "-o", "remount,bind,ro", tmp_path], check=True)
            fails(store, capsys, str(store.folder), "Read-only file system")
            assert bits(store.newest()) == bits(make_checkpoint(1))
        fill(store, 3)
        assert bits(store.newest()) == bits(make_checkpoint(3))


def test_a_folder_that_is_removed_is_made_and_locked_again(tmp_path, capsys, refused):
    with opened(tmp_path / "checkpoints") as store:
        fill(store, 1)
        fail_once(store, 2)
        fill(store, 3)
        assert f"{store.folder}: was removed while the run used it" in capsys.readouterr().err
        assert bits(store.newest()) == bits(make_checkpoint(3))
        with refused(f"process {os.getpid()}"):
            Store(tmp_path / "checkpoints", ABOUT, 2)


def test_snapshots_that_are_removed_are_missed(tmp_path, capsys):
    with opened(tmp_path / "checkpoints") as store:
        store.put_snapshot("epoch-0001.safetensors", make_checkpoint(1).model)
        fill(store, 1)
        shutil.rmtree(tmp_path / "checkpoints")
        fill(store, 2)
        with pytest.raises(FileNotFoundError) as caught:
            store.link_snapshots(tmp_path / "linked")
        assert "epoch-0001.safetensors" in caught.value.filename
    with opened(tmp_path / "checkpoints") as store:
        assert store.newest() is None  # without them it is not whole
        assert "epoch-0001.safetensors" in capsys.readouterr().err


def test_what_is_still_to_be_written_is_written_before_the_lock_is_given_back(tmp_path):
    with opened(tmp_path) as store:
        for step in range(9):
            store.put(make_checkpoint(step))
    with opened(tmp_path) as store:
        assert bits(store.newest()) == bits(make_checkpoint(8))
