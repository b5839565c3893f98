"""Completion, as real shells do it."""

import os
import pty
import select
import shlex
import shutil
import subprocess
import sys
import time

import pytest

from lockstep.__main__ import OF_THE_LIBRARY
from lockstep.pipeline import completion
from lockstep.pipeline.cli import make_parser
from tests.conftest import environment

LINES = {
    "lockstep tra": {"train"},
    "lockstep s": {"stop", "shrink", "summarize"},
    "lockstep train --lr": {"--lr"},
    "lockstep train --strategy loc": {"local_sgd"},
    "lockstep launch --h": {"--help"},
    "lockstep grow --r": {"--ranks"},
    "lockstep verify --backend g": {"gloo"},
    "lockstep verify scr": {"script.py"},
    "lockstep stop res": {"results"},
    "lockstep predict results pho": {"photo.jpg"},
    "lockstep nothing": set(),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the scripts of all shells, and some files."""
    folder = tmp_path_factory.mktemp("shells")
    for shell in ("bash", "zsh", "fish"):
        command = [sys.executable, "-X", "importtime", "-m", "lockstep", "completion", shell]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
        assert "lockstep.pipeline.completion" in loaded
        assert not {"torch", "numpy", "pandas", "mpi4py"} & loaded
        (folder / f"{shell}.sh").write_text(done.stdout)
    (folder / "results").mkdir()
    for name in ("script.py", "photo.jpg"):
        (folder / name).touch()
    return folder


def test_the_words_of_the_library_are_all_there():
    assert completion.OF_THE_LIBRARY.keys() == OF_THE_LIBRARY.keys()
    assert (
        not completion.OF_THE_LIBRARY.keys() & make_parser()._subparsers._group_actions[0].choices
    )


def test_without_shtab_it_says_what_to_install(monkeypatch, refused):
    monkeypatch.setitem(sys.modules, "shtab", None)
    with refused("shtab is missing; pip install 'lockstep[completion]'"):
        completion.completion(make_parser(), "bash")


@pytest.mark.parametrize("line", LINES)
def test_bash_completes(folder, line):
    # What readline does at Tab: it splits the line, and calls the function that is named.
    program = """
    source bash.sh
    set -- $(complete -p lockstep)
    while [ "$1" != -F ]; do shift; done
    COMP_LINE=$LINE COMP_POINT=${#LINE}
    read -ra COMP_WORDS <<< "$LINE"
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    "$2" lockstep "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
    printf '%s\\n' "${COMPREPLY[@]}"
    """
    words = ["bash", "--norc", "-c", program]
    done = subprocess.run(
        words, cwd=folder, env=os.environ | {"LINE": line}, capture_output=True, text=True
    )
    assert done.stderr == ""
    # --lr is the beginning of others, too.
    found = {word.rstrip("/") for word in done.stdout.split()}
    assert LINES[line] <= found if line.endswith("--lr") else LINES[line] == found


@pytest.mark.skipif(not shutil.which("fish"), reason="there is no fish")
@pytest.mark.parametrize("line", LINES)
def test_fish_completes(folder, line):
    words = ["fish", "--no-config", "-c", f"source fish.sh; complete -C {shlex.quote(line)}"]
    done = subprocess.run(
        words, cwd=folder, env=os.environ | {"HOME": str(folder)}, capture_output=True, text=True
    )
    found = {word.partition("\t")[0].rstrip("/") for word in done.stdout.splitlines()}
    assert LINES[line] <= found if line.endswith("--lr") else LINES[line] == found


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("zsh"), reason="there is no zsh")
def test_zsh_completes(folder):
    (folder / "functions").mkdir()
    shutil.copy(folder / "zsh.sh", folder / "functions/_lockstep")
    (folder / ".zshrc").write_text(
        "fpath=(functions $fpath); autoload -Uz compinit; compinit -u -D; PS1='ready> '\n"
    )
    leader, follower = pty.openpty()
    shell = subprocess.Popen(
        ["zsh", "-d", "-i"],
        cwd=folder,
        env=os.environ | {"TERM": "dumb", "ZDOTDIR": str(folder)},
        stdin=follower,
        stdout=follower,
        stderr=follower,
        start_new_session=True,
    )
    try:
        _read_until(leader, "ready> ")
        for line, words in LINES.items():
            if len(words) == 1 and not line.endswith("--lr"):
                (word,) = words
                os.write(leader, f"{line}\t".encode())
                _read_until(leader, line.rpartition(" ")[0] + f" {word}")
                os.write(leader, b"\x15")  # Ctrl-U: the line is forgotten
    finally:
        shell.kill()
        shell.wait()
        os.close(leader)
        os.close(follower)


def _read_until(terminal: int, text: str, patience: float = 20) -> None:
    said, until = "", time.monotonic() + patience
    while text not in said:
        ready, _, _ = select.select([terminal], [], [], max(0, until - time.monotonic()))
        assert ready, f"no {text!r} in {said!r}"
        said += os.read(terminal, 4096).decode(errors="replace")
