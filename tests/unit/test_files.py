"""files: nothing half-written under a final name, and no litter."""

import hashlib
import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.errors import UserError
from lockstep.files import atomic, check_sha256, read_json, sha256, sweep, write_json


def test_content_appears_only_at_the_end(tmp_path):
    path = tmp_path / "new" / "file"
    with atomic(path) as draft:
        draft.write_text("half")
        assert not path.exists()
        draft.write_text("whole")
    assert path.read_text() == "whole"
    with atomic(path) as draft:
        draft.write_text("other")
        assert path.read_text() == "whole"
    assert path.read_text() == "other"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("old", [None, "old"])
def test_what_breaks_off_leaves_the_old_file_and_no_litter(tmp_path, error, old):
    path = tmp_path / "file"
    if old is not None:
        path.write_text(old)
    with pytest.raises(error), atomic(path) as draft:
        draft.write_text("half")
        (draft.parent / "another").write_text("beside it")
        raise error
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == ([("file", old)] if old else [])


def test_a_draft_that_nobody_wrote_is_an_error_and_no_file(tmp_path):
    with pytest.raises(FileNotFoundError), atomic(tmp_path / "file"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def umask_untouched(monkeypatch):
    """Nobody may ask for the umask, which is to change it, for other threads as well."""
    monkeypatch.setattr(os, "umask", None)


@pytest.mark.usefixtures("umask_untouched")
def test_a_new_file_can_be_read_by_those_who_could_read_any_new_file(tmp_path):
    (tmp_path / "plain").write_text("")
    with atomic(tmp_path / "file") as draft:
        draft.write_text("")
    modes = {(tmp_path / name).stat().st_mode for name in ("plain", "file")}
    assert len(modes) == 1


def test_json_and_sums_are_those_of_the_common_tools(tmp_path):
    write_json(tmp_path / "a.json", {"b": [1, 2.5, None], "a": "ü"})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"b": [1, 2.5, None], "a": "ü"}
    assert text.endswith("}\n")
    assert sha256(tmp_path / "a.json") == hashlib.sha256(text.encode()).hexdigest()


def test_what_a_killed_process_left_is_swept_away(tmp_path):
    path = tmp_path / "file"
    path.write_text("whole")
    program = """
import os, sys
from pathlib import Path
from lockstep.files import atomic
with atomic(Path(sys.argv[1])) as draft:
    draft.write_text("half")
    os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", program, path]).returncode == -9
    other = tmp_path / ".other-abcdefgh"
    other.mkdir()
    assert len(list(tmp_path.iterdir())) == 3
    sweep(path)
    assert sorted(tmp_path.iterdir()) == [other, path]
    assert path.read_text() == "whole"


@given(st.binary(max_size=40) | st.text('{}[]":,0123456789eE.-ntfu\\ud8', max_size=40))
def test_json_of_anything_is_an_object_or_one_line(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("odd") / "a.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    try:
        assert isinstance(read_json(path, "a record", "write it again"), dict)
    except UserError as error:
        assert str(error).startswith(f"{path}: not a record (")
        assert str(error).endswith("; write it again")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[]", "it is a list"),
        (b'{"a": ' * 100_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "4300"),
        (b"\xff\xfe{}", "codec"),
        (b"", "Expecting value"),
        (None, "No such file"),
    ],
)
def test_json_that_is_no_record_says_why(tmp_path, refused, content, words):
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    with refused(tmp_path / "a.json", "not a record", words, "write it again"):
        read_json(tmp_path / "a.json", "a record", "write it again")


def test_a_file_that_is_not_the_one_that_was_written_down_is_named(tmp_path, refused):
    path, record = tmp_path / "file", tmp_path / "record.json"
    path.write_text("")
    check_sha256(path, hashlib.sha256(b"").hexdigest(), record, "write it again")
    for expected in ("0" * 64, None, 3):
        with refused(path, "e3b0c44298fc", str(expected)[:12], record, "write it again"):
            check_sha256(path, expected, record, "write it again")
    path.unlink()
    with refused(path, "No such file", "write it again"):
        check_sha256(path, "0" * 64, record, "write it again")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path, refused):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with refused(path, "is no file", "write it again"):
        check_sha256(path, "0" * 64, path, "write it again")
    with refused(path, "is no file", "write it again"):
        read_json(path, "a record", "write it again")
