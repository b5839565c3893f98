"""progress.jsonl: what a training tells, and what is seen of it."""

import fcntl
import json
import math
import os
import shutil
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from lockstep import progress
from lockstep.pipeline.live import rows
from lockstep.pipeline.seen import Lines, Seen, look, saved
from lockstep.progress import NAME, Teller, Told, duration, measured, read, words

ROW = {"epoch": 1, "lr": 0.1, "loss": 0.5, "accuracy": 0.75, "validation_loss": 0.25}
ROW |= {"validation_balanced_accuracy": 0.5, "images_per_second": 1234.5, "input_seconds": 0.1}


@pytest.fixture
def teller(tmp_path):
    return Teller(tmp_path, epochs=3, steps=10, batch=8, unit="images")


def told(folder):
    return [json.loads(line) for line in (folder / NAME).read_text().splitlines()]


def test_a_line_says_where_the_training_is(teller, tmp_path):
    assert teller.is_due()
    teller.tell(0, [])
    assert not teller.is_due()
    line = teller.tell(4, [], loss=0.5, ranks=2)
    assert told(tmp_path)[-1] == line
    assert (line["epoch"], line["epochs"], line["step"], line["steps"]) == (1, 3, 4, 30)
    assert line["seconds_left"] >= 0
    assert line["rate"] > 0
    assert "seconds_left" not in told(tmp_path)[0]  # of no step, nobody knows how long one takes


def test_epochs_that_are_over_come_once_each_whoever_tells(teller, tmp_path):
    teller.tell(10, [ROW])
    teller.tell(13, [ROW])
    other = Teller(tmp_path, 3, 10, 8)  # another rank is the first one now
    other.tell(20, [ROW, ROW | {"epoch": 2}])
    other.tell(21, [ROW, ROW | {"epoch": 2}])
    assert [line["event"] for line in told(tmp_path)] == ["epoch", "epoch", "step", "step"]
    assert [row["epoch"] for row in read(tmp_path).epochs] == [1, 2]
    assert read(tmp_path).now["step"] == 21


def test_a_training_that_begins_leaves_nothing_of_another(teller, tmp_path):
    Teller(tmp_path, 3, 10, 8).tell(20, [ROW, ROW | {"epoch": 2}])
    teller.tell(0, [])
    assert read(tmp_path).epochs == []


def test_what_is_no_number_is_no_json_and_a_torn_line_is_left_away(teller, tmp_path):
    teller.tell(3, [], loss=math.nan)
    with (tmp_path / NAME).open("a") as file:
        file.write('{"event": "step", "loss": 0.')
    assert read(tmp_path).now["loss"] is None
    assert "NaN" not in (tmp_path / NAME).read_text()
    assert "loss nan" in words(read(tmp_path).now, 3, "images")


def test_a_training_goes_on_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    teller = Teller(tmp_path / "file", 1, 10, 8)
    teller.tell(1, [])
    teller.tell(2, [])
    teller.end("done", 10, [])


@given(st.lists(st.text() | st.binary().map(lambda b: b.decode("latin-1")), max_size=5))
def test_whatever_is_in_the_file_is_no_error(tmp_path_factory, lines):
    folder = tmp_path_factory.mktemp("any")
    (folder / NAME).write_text("\n".join([*lines, "[]", "3", '{"event": "epoch"}']), "utf-8")
    assert read(folder).epochs == []


def test_names_and_words():
    assert measured(ROW) == ["loss", "accuracy", "validation_loss"]
    row = ROW | {"seconds_left": 250.0}
    said = "epoch 1/3  loss 0.5000  accuracy 0.7500  validation loss 0.2500  1,234 images/s"
    assert words(row, 3, "images") == f"{said}  4:10 left"
    assert words({"epoch": 1, "loss": 3e36}, 3, "images", "step 2/9") == (
        "epoch 1/3  step 2/9  loss 3e+36"
    )
    assert [duration(t) for t in (0.4, 59.6, 3599.7, 90061)] == [
        "0:00",
        "1:00",
        "1:00:00",
        "25:01:01",
    ]
    assert duration(math.inf) == "?"


def test_a_training_is_seen_as_what_it_is(teller, tmp_path, monkeypatch):
    assert look("a", tmp_path).state == "starting"
    teller.tell(3, [])
    assert look("a", tmp_path).state == "training"
    monkeypatch.setattr("lockstep.pipeline.seen.SILENCE", -1.0)
    assert look("a", tmp_path).state == "ended"
    (tmp_path / "checkpoints").mkdir()
    with (tmp_path / "checkpoints/lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert look("a", tmp_path).state == "training"
    teller.end("stopped", 3, [])
    assert look("a", tmp_path).state == "stopped"
    teller.tell(4, [])
    (tmp_path / "train.json").write_text("{}")
    assert look("a", tmp_path).state == "done"


@pytest.mark.parametrize("width", [80, 120])
def test_a_row_is_one_line_and_says_what_matters(teller, tmp_path, width):
    teller.tell(10, [ROW])
    teller.tell(13, [ROW], loss=0.4, accuracy=0.8, ranks=3, of_ranks=4, rate=4321.0)
    console = Console(width=width, record=True)
    with console.capture() as capture:
        console.print(rows([look(f"{'r' * 200}-lr0.1", tmp_path)], width))
    (line,) = capture.get().splitlines()
    assert line.startswith("rr")
    assert "lr0.1  " in line
    assert len(line) <= width
    for said in ("1/3", "loss 0.4000", "val. 0.2500", "0:00 left, 3 of 4 ranks"):
        assert said in line
    assert ("4.3k/s" in line) == (width > 100)


def test_without_a_terminal_each_epoch_is_a_line(teller, tmp_path):
    lines = Lines()
    teller.tell(0, [])
    assert lines.new(look("a", tmp_path)) == []
    teller.tell(10, [ROW])
    assert len(lines.new(look("a", tmp_path))) == 1
    assert lines.new(look("a", tmp_path)) == []
    teller.tell(30, [ROW, ROW | {"epoch": 2}, ROW | {"epoch": 3}])
    assert [line[:13] for line in lines.new(look("a", tmp_path))] == [
        "a  epoch 2/3 ",
        "a  epoch 3/3 ",
    ]
    time.sleep(0.002)  # no two launches begin in one millisecond
    Teller(tmp_path, 3, 10, 8).tell(10, [ROW])  # it goes on after an earlier epoch
    assert lines.new(look("a", tmp_path)) == ["a  goes on after step 10"]
    time.sleep(0.002)
    Teller(tmp_path, 3, 10, 8).tell(20, [ROW, ROW | {"epoch": 2}])
    assert [line[:12] for line in lines.new(look("a", tmp_path))] == [
        "a  goes on a",
        "a  epoch 2/3",
    ]


def test_a_training_that_was_at_its_end_says_so_and_none_of_its_epochs_again(teller, tmp_path):
    lines, history = Lines(), [ROW, ROW | {"epoch": 2}, ROW | {"epoch": 3}]
    teller.end("done", 30, history)
    lines.skip(look("a", tmp_path))
    assert lines.new(Seen("a", tmp_path, Told(), "starting")) == []
    time.sleep(0.002)  # no two launches begin in one millisecond
    again = Teller(tmp_path, 3, 10, 8)
    again.tell(30, history)
    again.end("done", 30, history)
    said = ["a  was trained already; its results are written again"]
    assert lines.new(look("a", tmp_path)) == said
    assert lines.new(look("a", tmp_path)) == []


def test_that_a_training_goes_on_is_said_once_for_each_launch(teller, tmp_path):
    lines = Lines()
    teller.tell(0, [])
    assert lines.resumed(look("a", tmp_path)) == []
    teller.tell(7, [])
    assert lines.resumed(look("a", tmp_path)) == []
    for _ in range(2):  # the second time it is killed before anything more is saved
        time.sleep(0.002)  # no two launches begin in one millisecond
        lines.skip(look("a", tmp_path))
        assert lines.resumed(look("a", tmp_path)) == []
        again = Teller(tmp_path, 3, 10, 8)
        again.tell(5, [])
        again.tell(6, [])
        assert lines.resumed(look("a", tmp_path)) == ["a  goes on after step 5"]
        assert lines.resumed(look("a", tmp_path)) == []


def test_what_is_saved_is_what_the_newest_configuration_has_whole(tmp_path):
    assert saved(tmp_path) is None
    for number, (name, steps) in enumerate({"old": [900], "new": [20, 100]}.items()):
        for step in steps:
            folder = tmp_path / "checkpoints" / name / f"step-{step:08}"
            folder.mkdir(parents=True)
            (folder / "manifest.json").write_text("{}")
        about = folder.parent / "about.json"
        about.write_text("{}")
        os.utime(about, (number, number))
    (tmp_path / "checkpoints/new/.step-00000200").mkdir()
    assert saved(tmp_path) == 100
    shutil.rmtree(tmp_path / "checkpoints/new")
    assert saved(tmp_path) == 900


def test_readers_see_whole_lines_while_one_writes(teller, tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0.0)
    over = threading.Event()

    def write():
        for step in range(300):
            teller.tell(step, [ROW] * (step // 100), loss=0.5)
        over.set()

    writer = threading.Thread(target=write)
    writer.start()
    last = -1
    while not over.is_set():
        seen = read(tmp_path).now.get("step", -1)
        assert seen >= last
        last = seen
    writer.join()
    assert read(tmp_path).now["step"] == 299
