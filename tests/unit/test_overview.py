"""A workflow while it runs, as its logger tells of it."""

import json

import pytest

from lockstep.pipeline.overview import Overview
from lockstep.pipeline.planned import announce, read
from lockstep.progress import Teller


@pytest.mark.parametrize(("count", "said"), [(0, ""), (1, "1 bad file;"), (12, "12 bad files;")])
def test_bad_photos_that_are_skipped_are_told(tmp_path, capsys, count, said):
    manifest = tmp_path / "manifest.json"
    manifest.write_text(
        json.dumps({"skipped": {f"{i}.jpg": "not a whole image" for i in range(count)}})
    )
    overview = Overview()
    overview.start(1, "prepare", "", [tmp_path / "train/images.npy", manifest])
    overview.finish(1)
    overview.end()
    lines = [line for line in capsys.readouterr().err.splitlines() if "skipped" in line]
    assert lines == (
        [f'prepare: skipped {said} {manifest} lists what, under "skipped"'] if said else []
    )


def test_what_an_earlier_launch_told_is_not_taken_for_this_one(tmp_path, capsys):
    Teller(tmp_path / "a", 3, 10, 8).tell(7, [])
    overview = Overview()
    overview.start(1, "train_run", "a", [tmp_path / "a/model.safetensors"])
    assert [one.state for one in overview._look()] == ["starting"]
    overview.interrupt()
    overview.end()
    assert capsys.readouterr().err == ""


def test_what_is_not_saved_is_not_said_to_be(tmp_path, capsys):
    (tmp_path / "a").mkdir()
    overview = Overview()
    overview.start(1, "train_run", "a", [tmp_path / "a/model.safetensors"])
    Teller(tmp_path / "a", 3, 10, 8).tell(0, [])
    overview.interrupt()
    overview.fail(1, "train_run", [])
    overview.end()
    said = (
        "Interrupted. The same command goes on:\n  a  from its beginning: nothing was saved yet\n"
    )
    assert capsys.readouterr().err == said


def test_a_workflow_is_seen_to_run_until_its_file_is_closed(tmp_path):
    file = announce(tmp_path / "c", ["a", "b"])
    again = announce(tmp_path / "c", ["b"])
    assert read(tmp_path).folders == [tmp_path / "c/b"]
    file.close()
    assert read(tmp_path).goes_on
    again.close()
    assert not read(tmp_path).goes_on
    (tmp_path / "c/runs.json").write_text("[")
    assert read(tmp_path).folders == []
    assert announce(tmp_path / "c/runs.json", ["a"]) is None
