"""A workflow while it runs: on a terminal, and where there is none."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest

from lockstep.progress import Teller
from tests.conftest import REPOSITORY, environment, run

# Rules as ours are called; what they do is told as a training tells it.
SNAKEFILE = """
rule all:
    input: "results/a/train.json", "summary"

rule train_run:
    output: "results/{run}/train.json"
    log: "logs/{run}.log"
    shell: "python train.py results/{wildcards.run} 2> {log} && touch {output}"

rule summarize:
    input: "results/a/train.json"
    output: "summary"
    log: "logs/summarize.log"
    shell: "({config[summarize]}) > {output} 2> {log}"
"""
TRAIN = """
import sys, time
from pathlib import Path
from lockstep.progress import Teller
teller = Teller(Path(sys.argv[1]), 3, 10, 8, "images")
history = []
for step in range(30):
    teller.tell(step, history, loss=1 / (step + 1))
    time.sleep(0.1)
    if step % 10 == 9:
        row = {"epoch": len(history) + 1, "loss": 1 / (step + 1), "images_per_second": 80.0}
        history.append(row)
teller.end("done", 30, history)
"""
FAILS = "echo noise >&2; echo 'lockstep summarize:' no table here >&2; exit 2"


@pytest.fixture
def command(tmp_path):
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    (tmp_path / "train.py").write_text(TRAIN)

    def make(*words, summarize="true"):
        python = [sys.executable, "-m", "snakemake", "--cores", "2", "--logger", "lockstep"]
        return [*python, *words, "--config", f"summarize={summarize}"]

    return make


def seen_on_a_terminal(command, folder, interrupt_after=None):
    """Return what a terminal of 80 x 24 got, and the status."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    running = subprocess.Popen(
        command,
        cwd=folder,
        env=environment() | {"TERM": "xterm"},
        stdin=follower,
        stdout=follower,
        stderr=follower,
        start_new_session=True,
    )
    os.close(follower)
    text, until = b"", time.monotonic() + 100
    while time.monotonic() < until:
        if select.select([leader], [], [], 0.5)[0]:
            try:
                text += os.read(leader, 65536)
            except OSError:  # all who could write are gone
                break
        if interrupt_after and interrupt_after in text:
            running.send_signal(signal.SIGINT)
            interrupt_after = None
    os.close(leader)
    return text.decode(), running.wait(timeout=30)


def plain(text):
    """Return text without what moves the cursor and colours."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text).replace("\r", "")


def test_a_terminal_has_one_view_that_stays_in_its_place(command, tmp_path):
    text, status = seen_on_a_terminal(command(), tmp_path)
    assert status == 0
    shown = plain(text)
    assert "▸ train   summarize" in shown
    assert re.search(r"a  ━.*[12]/3  loss 0\.\d{4} .*0:0\d left", shown)
    last = shown[shown.rindex("✔ train") :]
    assert re.match(r"✔ train 0:0\d   ✔ summarize 0:0\d\na  ━+  3/3  loss 0.0333", last)
    assert "in all" in last
    assert "\x1b[?25h" in text[text.rindex("in all") :]  # the cursor is to be seen again
    assert "rule train_run" not in shown
    log = next((tmp_path / ".snakemake/log").iterdir()).read_text()
    assert "rule train_run" in log


def test_without_a_terminal_it_is_a_line_for_each_job_and_epoch(command, tmp_path):
    done = run(command(), tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert [line[:14] for line in lines if "epoch" in line] == [
        f"a  epoch {i}/3  " for i in (1, 2, 3)
    ]
    assert "train a: done in 0:0" in done.stderr
    assert "summarize: done in 0:00 (2 of 2 jobs)" in lines
    assert lines.index("summarize: done in 0:00 (2 of 2 jobs)") > 3
    assert len(lines) < 10


@pytest.mark.parametrize("where", ["terminal", "pipe"])
def test_what_went_wrong_is_a_line(command, tmp_path, where):
    words = command(summarize=FAILS)
    if where == "pipe":
        done = run(words, tmp_path)
        text, status = done.stderr, done.returncode
    else:
        text, status = seen_on_a_terminal(words, tmp_path)
        assert "✖ summarize 0/1" in plain(text)
    shown = plain(text)
    assert status == 1
    assert shown.count("summarize: failed; logs/summarize.log has all of it\n") == 1
    assert shown.count("  lockstep summarize: no table here\n") == 1
    assert "noise" not in shown
    assert "set -euo pipefail" not in shown


def test_where_a_log_does_not_say_what_went_wrong_its_end_is_shown(command, tmp_path):
    done = run(command(summarize="seq 100 >&2; exit 3"), tmp_path)
    assert "  100\n" in done.stderr
    assert "  80\n" not in done.stderr


def test_an_interrupt_leaves_the_terminal_as_it_was(command, tmp_path):
    words = command(summarize="sleep 15")  # on a busy machine it would else be over before
    text, status = seen_on_a_terminal(words, tmp_path, interrupt_after=b"1/3")
    assert status != 0
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


@pytest.mark.parametrize("flag", ["--dry-run", "--verbose"])
def test_snakemakes_own_text_is_there_for_who_asks(command, tmp_path, flag):
    done = run(command(flag), tmp_path)
    assert "rule train_run" in done.stdout + done.stderr


def test_watch_shows_the_same_from_another_shell(tmp_path):
    watch = [sys.executable, "-m", "lockstep", "watch", "results"]
    done = run(watch, tmp_path)
    assert done.returncode == 2
    assert done.stderr == (
        "lockstep watch: results: No such folder; expected that of a run, or one with runs\n"
    )
    (tmp_path / "results/more/a").mkdir(parents=True)
    assert run(watch, tmp_path).stderr == "lockstep watch: results: nothing has trained here yet\n"
    (tmp_path / "train.py").write_text(TRAIN)
    with subprocess.Popen(
        [sys.executable, "train.py", "results/more/a"],
        cwd=tmp_path,
        env=environment() | {"PYTHONPATH": str(REPOSITORY / "src")},
    ):
        while not (tmp_path / "results/more/a/progress.jsonl").exists():
            time.sleep(0.05)
        text, status = seen_on_a_terminal(watch, tmp_path)
    assert status == 0
    assert re.search(r"a  ━.*[0-2]/3  loss 0\.\d{4} .*0:0\d left", plain(text))
    assert "3/3  loss 0.0333" in plain(text).splitlines()[-1]
    Teller(tmp_path / "results/b", 1, 1, 1)
    (tmp_path / "results/b").mkdir()
    Teller(tmp_path / "results/b", 1, 1, 1).end("stopped", 0, [])
    done = run(watch, tmp_path)
    assert [line[:12] for line in done.stdout.splitlines()] == [
        f"a  epoch {i}/3" for i in (1, 2, 3)
    ]
