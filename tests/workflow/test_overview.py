"""A workflow while it runs: on a terminal, and where there is none."""

import fcntl
import os
import pty
import re
import select
import shlex
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest

from lockstep.pipeline.planned import announce
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
# As the pipeline saves.
SAVES = """
folder = Path(sys.argv[1], "checkpoints/a/step-00000008")
folder.mkdir(parents=True)
(folder / "manifest.json").touch()
(folder.parent / "about.json").touch()
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
            os.killpg(running.pid, signal.SIGINT)  # as a terminal does at Ctrl-C
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


@pytest.mark.parametrize("where", ["terminal", "pipe"])
def test_after_an_interrupt_it_is_said_where_a_training_goes_on(command, tmp_path, where):
    goes_on = TRAIN.replace("for step in range(30)", f"{SAVES}for step in range(5, 30)")
    (tmp_path / "train.py").write_text(goes_on)
    words = command()
    if where == "pipe":
        words = ["sh", "-c", f"{shlex.join(words)} 2>&1 | (trap '' INT; cat)"]
    text, _ = seen_on_a_terminal(words, tmp_path, interrupt_after=b"goes on after step 5")
    shown = plain(text)
    assert shown.count("a  goes on after step 5\n") == 1
    last = "Interrupted. The same command goes on:\n  a  after step 8 of 30, which is saved\n"
    assert shown.endswith(last)
    assert "failed" not in shown


def test_an_interrupt_leaves_the_terminal_as_it_was(command, tmp_path):
    words = command(summarize="sleep 15")  # on a busy machine it would else be over before
    text, status = seen_on_a_terminal(words, tmp_path, interrupt_after=b"1/3")
    assert status != 0
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


@pytest.mark.parametrize("flag", ["--dry-run", "--verbose"])
def test_snakemakes_own_text_is_there_for_who_asks(command, tmp_path, flag):
    done = run(command(flag), tmp_path)
    assert "rule train_run" in done.stdout + done.stderr


WATCH = [sys.executable, "-m", "lockstep", "watch", "results"]


def test_watch_shows_the_same_from_another_shell(tmp_path):
    (tmp_path / "train.py").write_text(TRAIN)
    later = f"sleep 2; {sys.executable} train.py results/more/a"
    (tmp_path / "results/more").mkdir(parents=True)
    source = {"PYTHONPATH": str(REPOSITORY / "src")}
    with subprocess.Popen(["sh", "-c", later], cwd=tmp_path, env=environment() | source):
        text, status = seen_on_a_terminal(WATCH, tmp_path)
    assert status == 0
    waits = "results: nothing has trained yet; waiting for the first training (Ctrl-C ends this)"
    assert plain(text).replace("\n", "").startswith(waits)
    assert re.search(r"a  ━.*[0-2]/3  loss 0\.\d{4} .*0:0\d left", plain(text))
    assert "3/3  loss 0.0333" in plain(text).splitlines()[-1]
    (tmp_path / "results/b").mkdir()
    Teller(tmp_path / "results/b", 1, 1, 1).end("stopped", 0, [])
    done = run(WATCH, tmp_path)
    *epochs, last = done.stdout.splitlines()
    assert [line[:12] for line in epochs] == [f"a  epoch {i}/3" for i in (1, 2, 3)]
    assert last == "1 of 2 done, 1 stopped"


def test_watch_waits_for_the_runs_of_a_workflow_as_long_as_it_runs(tmp_path):
    results = tmp_path / "results"
    with subprocess.Popen(WATCH, cwd=tmp_path, env=environment(), stdout=-1, text=True) as watch:
        lines = iter(watch.stdout.readline, "")
        missing = "results: No such folder yet; waiting for the first training (Ctrl-C ends this)"
        assert next(lines) == missing + "\n"
        workflow = announce(results / "c", ["one", "two", "three"])
        for name, said in (
            ("one", "1 of 3 done, 2 not begun"),
            ("two", "2 of 3 done, 1 not begun"),
        ):
            (results / "c" / name).mkdir()
            Teller(results / "c" / name, 1, 1, 1).end("done", 1, [])
            assert next(lines) == said + "\n"
            assert watch.poll() is None
        workflow.close()
        assert watch.wait(20) == 0
        assert next(lines, "") == ""
    assert run(WATCH, tmp_path).stdout == "2 of 3 done, 1 not begun\n"


def test_watch_says_that_a_workflow_has_ended_before_anything_was_trained(tmp_path):
    workflow = announce(tmp_path / "results/c", ["one"])
    with subprocess.Popen(WATCH, cwd=tmp_path, env=environment(), stdout=-1, stderr=-1) as watch:
        watch.stdout.readline()
        workflow.close()
        said = "lockstep watch: results: the workflow has ended, and nothing was trained\n"
        assert watch.communicate(timeout=20)[1].decode() == said
        assert watch.returncode == 2
