"""download: files are fetched whole or not at all, and what was fetched is written down."""

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import time

import pytest

from lockstep.pipeline.config import Dataset
from lockstep.pipeline.data.sources import SOURCES, Source
from lockstep.pipeline.stages.download import download

CONTENT = {"images.gz": bytes(range(256)) * 40, "labels.gz": b"one two three"}


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Try again at once."""
    monkeypatch.setattr("lockstep.pipeline.stages.download.PAUSE", 0)


@pytest.fixture
def mirrors(monkeypatch, site):
    """Let `mnist` be two small files, on the mirrors that the test names; the site has both."""
    for name, body in CONTENT.items():
        site.answer(f"/good/{name}", body)

    def use(*addresses):
        files = {name: hashlib.sha256(body).hexdigest() for name, body in CONTENT.items()}
        source = Source((1, 28, 28), tuple("0123456789"), files, addresses)
        monkeypatch.setitem(SOURCES, "mnist", source)

    return use


@pytest.fixture
def nobody():
    """An address that refuses connections."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, so nobody else's, but not listening
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/data"


def test_files_arrive_and_are_described(tmp_path, site, mirrors):
    mirrors(f"{site.url}/good/")
    described = download(Dataset(name="mnist"), tmp_path)
    for name, body in CONTENT.items():
        assert (tmp_path / "raw" / name).read_bytes() == body
        assert described["files"][name] == {
            "url": f"{site.url}/good/{name}",
            "bytes": len(body),
            "sha256": hashlib.sha256(body).hexdigest(),
        }
    assert json.loads((tmp_path / "sources.json").read_text()) == described


def test_a_good_file_is_not_fetched_again(tmp_path, site, mirrors):
    mirrors(f"{site.url}/good")
    first = download(Dataset(name="mnist"), tmp_path)
    assert download(Dataset(name="mnist"), tmp_path) == first
    assert sorted(site.asked) == sorted(f"/good/{name}" for name in CONTENT)


def test_a_damaged_file_is_fetched_again(tmp_path, site, mirrors):
    mirrors(f"{site.url}/good")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "labels.gz").write_bytes(b"one two")
    download(Dataset(name="mnist"), tmp_path)
    assert (tmp_path / "raw" / "labels.gz").read_bytes() == CONTENT["labels.gz"]


def test_an_altered_file_leaves_nothing_under_its_name(tmp_path, site, mirrors, refused, litter):
    site.answer("/altered/images.gz", CONTENT["images.gz"][:-1] + b"?")
    mirrors(f"{site.url}/altered")
    with refused("mnist", "images.gz", f"{site.url}/altered/images.gz", "SHA-256"):
        download(Dataset(name="mnist"), tmp_path)
    assert litter(tmp_path) == []


def test_a_cut_file_leaves_nothing_under_its_name(tmp_path, site, mirrors, refused, litter):
    body = CONTENT["images.gz"]
    site.answer("/cut/images.gz", body[:5000], length=len(body))
    mirrors(f"{site.url}/cut")
    with refused("mnist", "images.gz", f"{site.url}/cut/images.gz", "broke off"):
        download(Dataset(name="mnist"), tmp_path)
    assert litter(tmp_path) == []


def test_a_missing_file_is_named_with_the_servers_answer(tmp_path, site, mirrors, refused, litter):
    site.answer("/empty/images.gz", b"<html>no such file</html>", status=404)
    mirrors(f"{site.url}/empty")
    with refused("mnist", "images.gz", f"{site.url}/empty/images.gz", "404", "dataset.mirror"):
        download(Dataset(name="mnist"), tmp_path)
    assert litter(tmp_path) == []


def test_an_address_that_is_none_is_named(tmp_path, mirrors, refused):
    mirrors("http://unused.invalid")
    with refused("mnist", "images.gz", "http://[nowhere/images.gz: Failed to parse"):
        download(Dataset(name="mnist", mirror="http://[nowhere"), tmp_path)


def test_a_server_that_fails_once_is_asked_again(tmp_path, site, mirrors, capsys):
    for name, body in CONTENT.items():
        site.answer(f"/busy/{name}", b"busy", status=503)
        site.answer(f"/busy/{name}", body)
    mirrors(f"{site.url}/busy")
    download(Dataset(name="mnist"), tmp_path)
    assert site.asked == [f"/busy/{name}" for name in CONTENT for _ in range(2)]
    line = f"{site.url}/busy/images.gz: the server answered 503 Service Unavailable; trying again"
    assert f"{line} (2 of 3)" in capsys.readouterr().err
    assert (tmp_path / "raw" / "labels.gz").read_bytes() == CONTENT["labels.gz"]


@pytest.mark.parametrize(
    ("pause", "why"), [(0.02, r"it sent \d+ bytes in \d s"), (20, "nothing came for 0.5 s")]
)
def test_a_mirror_that_sends_next_to_nothing_is_given_up(
    tmp_path, site, mirrors, refused, monkeypatch, litter, capsys, pause, why
):
    monkeypatch.setattr("lockstep.pipeline.stages.download.PATIENCE", 0.5)
    site.answer("/slow/images.gz", CONTENT["images.gz"], pause=pause)
    mirrors(f"{site.url}/slow")
    started = time.monotonic()
    with refused("mnist", f"{site.url}/slow/images.gz", "dataset.mirror") as caught:
        download(Dataset(name="mnist"), tmp_path)
    assert time.monotonic() - started < 10  # all of it takes three minutes
    assert re.search(why, str(caught.value))
    assert site.asked == ["/slow/images.gz"]
    assert litter(tmp_path) == []
    mirrors(f"{site.url}/slow", f"{site.url}/good")
    download(Dataset(name="mnist"), tmp_path)
    assert re.search(f"/slow/images.gz: {why}.*; asking the next", capsys.readouterr().err)


def test_a_file_without_an_end_is_given_up(tmp_path, site, mirrors, refused, monkeypatch):
    monkeypatch.setattr("lockstep.pipeline.stages.download.LARGEST", 1000)
    mirrors(f"{site.url}/good")
    with refused("images.gz", "does not end"):
        download(Dataset(name="mnist"), tmp_path)


def test_drafts_of_a_killed_stage_are_removed(tmp_path, site, mirrors, litter):
    mirrors(f"{site.url}/good")
    for name in ("raw/tmpab12", ".sources.json-x/sources.json"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("half")
    download(Dataset(name="mnist"), tmp_path)
    assert litter(tmp_path) == ["raw/images.gz", "raw/labels.gz", "sources.json"]


def test_the_second_mirror_is_asked_where_the_first_is_down(tmp_path, site, mirrors, nobody):
    mirrors(nobody, f"{site.url}/good")
    described = download(Dataset(name="mnist"), tmp_path)
    assert described["files"]["labels.gz"]["url"] == f"{site.url}/good/labels.gz"


def test_every_mirror_that_failed_is_named(tmp_path, site, mirrors, nobody, refused, litter):
    site.answer("/altered/images.gz", b"other")
    mirrors(nobody, f"{site.url}/altered")
    with refused(f"{nobody}/images.gz: no connection", f"{site.url}/altered/images.gz: its SHA"):
        download(Dataset(name="mnist"), tmp_path)
    assert litter(tmp_path) == []


def test_a_mirror_of_the_users_is_the_only_one_asked(tmp_path, site, mirrors, nobody, refused):
    mirrors(f"{site.url}/good")
    with refused(nobody):
        download(Dataset(name="mnist", mirror=nobody), tmp_path)
    assert site.asked == []


def test_an_embedded_dataset_has_no_files(tmp_path, litter):
    assert download(Dataset(name="digits"), tmp_path)["files"] == {}
    assert litter(tmp_path) == ["sources.json"]


@pytest.mark.parametrize("name", SOURCES)
def test_known_files_have_whole_sums_and_addresses(name):
    source = SOURCES[name]
    assert all(re.fullmatch("[0-9a-f]{64}", known) for known in source.files.values())
    assert all(re.match("https?://", mirror) for mirror in source.mirrors)
    assert bool(source.files) == bool(source.mirrors)
    assert len(set(source.classes)) == len(source.classes)


def test_the_number_of_classes_is_the_datasets_own():
    counts = {name: len(source.classes) for name, source in SOURCES.items()}
    assert counts.pop("cifar100") == 100
    assert set(counts.values()) == {10}


def test_an_npz_is_described_where_it_lies(tmp_path):
    path = tmp_path / "own.npz"
    path.write_bytes(b"arrays")
    described = download(Dataset(name="npz", path=str(path)), tmp_path / "out")
    whole = hashlib.sha256(b"arrays").hexdigest()
    assert described["files"] == {"own.npz": {"bytes": 6, "sha256": whole}}


def make_folder(root):
    for name in ("cat/1.png", "cat/2 b.png", "cat-like/1.png", "dog/1.png"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    (root / "link").symlink_to(root.parent / "elsewhere")  # a class that lies on another disk
    (root.parent / "elsewhere").mkdir()
    (root.parent / "elsewhere" / "1.png").write_bytes(b"far")


def sum_of(root, output):
    return download(Dataset(name="imagefolder", path=str(root)), output)["files"][root.name]


def test_a_folders_sum_is_that_of_the_common_tools(tmp_path):
    make_folder(tmp_path / "own")
    found = sum_of(tmp_path / "own", tmp_path / "out")
    assert (found["files"], found["bytes"]) == (5, 9 + 11 + 14 + 9 + 3)
    command = "find -L . -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum"
    by_hand = subprocess.run(
        ["bash", "-c", command],
        cwd=tmp_path / "own",
        env={"LC_ALL": "C", "PATH": "/usr/local/bin:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert by_hand.stdout.split()[0] == found["sha256"]


def test_folders_that_lead_nowhere_are_refused(tmp_path, refused):
    make_folder(tmp_path / "own")
    expected = sum_of(tmp_path / "own", tmp_path / "out")
    (tmp_path / "own" / ".git").mkdir()
    (tmp_path / "own" / ".git" / "HEAD").write_text("hidden")
    assert sum_of(tmp_path / "own", tmp_path / "out") == expected
    odd = tmp_path / "elsewhere" / "odd"
    for make, words in (
        (os.mkfifo, "a fifo"),
        (lambda path: path.symlink_to("gone"), "a link to nothing"),
        (lambda path: path.symlink_to(tmp_path / "own"), "a link back"),
        (lambda path: path.symlink_to(tmp_path), "a link back"),
    ):
        make(odd)
        with refused("own/link/odd", words):
            sum_of(tmp_path / "own", tmp_path / "out")
        odd.unlink()


def test_a_folders_sum_changes_with_one_byte_or_name(tmp_path):
    make_folder(tmp_path / "own")
    sums = {sum_of(tmp_path / "own", tmp_path / "out")["sha256"]}
    (tmp_path / "own" / "cat" / "1.png").write_bytes(b"cat/1.pnh")
    sums.add(sum_of(tmp_path / "own", tmp_path / "out")["sha256"])
    (tmp_path / "elsewhere" / "1.png").write_bytes(b"fat")
    sums.add(sum_of(tmp_path / "own", tmp_path / "out")["sha256"])
    shutil.move(tmp_path / "own" / "dog" / "1.png", tmp_path / "own" / "dog" / "2.png")
    sums.add(sum_of(tmp_path / "own", tmp_path / "out")["sha256"])
    assert len(sums) == 4


def test_own_data_that_are_not_there_are_named(tmp_path, refused, litter):
    (tmp_path / "file").write_bytes(b"")
    for name, path in (("npz", "gone.npz"), ("imagefolder", "gone"), ("imagefolder", "file")):
        with refused("dataset.path", tmp_path / path, "expected"):
            download(Dataset(name=name, path=str(tmp_path / path)), tmp_path / "out")
    assert litter(tmp_path) == ["file"]
