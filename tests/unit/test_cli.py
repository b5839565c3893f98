"""The command line: every flag is explained, every mistake is one line and status 2."""

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lockstep import __version__
from lockstep.__main__ import OF_THE_LIBRARY
from lockstep.errors import UserError, nobody_reads
from lockstep.pipeline.cli import main, make_parser
from lockstep.pipeline.config import Dataset, Run


def parsers():
    """Return the parser of each stage, by name."""
    (action,) = (a for a in make_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return action.choices


STAGES = sorted(parsers())


@pytest.fixture
def lockstep(capsys):
    """A function that runs a command line: the exit status, and what it printed."""
    environment = dict(os.environ)

    def run(*words):
        try:
            main([str(word) for word in words])
            status = 0
        except SystemExit as ended:
            status = ended.code
        return status, *capsys.readouterr()

    yield run
    os.environ.clear()  # stages set the number of threads for their own process
    os.environ.update(environment)


def test_the_stages_are_those_of_the_workflow():
    known = (
        "average check completion config crate diff download evaluate export init page partition "
        "predict prepare report reproduce summarize train watch weights"
    )
    assert known.split() == STAGES


@pytest.mark.parametrize("stage", STAGES)
def test_help_explains_every_flag(lockstep, stage):
    status, printed, errors = lockstep(stage, "--help")
    assert (status, errors) == (0, "")
    for action in parsers()[stage]._actions:
        assert action.help, action
        for flag in action.option_strings or [action.dest]:
            assert flag in printed
    assert "%(" not in printed
    assert "None" not in printed


def test_help_lists_the_stages(lockstep):
    status, printed, _ = lockstep("--help")
    assert status == 0
    assert all(stage in printed for stage in STAGES)
    listed = [line.split()[0] for line in printed.partition("of the library")[2].splitlines()[1:]]
    assert sorted(listed) == sorted(OF_THE_LIBRARY)


def test_the_version_is_the_packages(lockstep):
    assert lockstep("--version") == (0, f"lockstep {__version__}\n", "")


@pytest.mark.parametrize(("stage", "model"), [("train", Run), ("download", Dataset)])
def test_every_key_of_the_configuration_is_a_flag_with_its_default(stage, model):
    known = {action.dest: action for action in parsers()[stage]._actions}
    for name, field in model.model_fields.items():
        assert f"--{name.replace('_', '-')}" in known[name].option_strings
        assert known[name].default == field.default


@pytest.mark.parametrize(
    "run",
    [
        Run(),
        Run(flip=True, nesterov=False, oversubscribe=True, decay_norm_bias=True),
        Run(ranks=1, shards=2, clip=0.5, lr=1e-5, scheme="iid", model="my.own:model", epochs=7),
    ],
)
def test_a_run_survives_its_flags(run):
    words = ["train", "--data", "d", "--partition", "p", "--output", "o"]
    for name, value in run.model_dump().items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        elif value is not None:
            words += [flag, str(value)]
    parsed = vars(make_parser().parse_args(words))
    assert Run(**{name: parsed[name] for name in Run.model_fields}) == run


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "COMMAND"),
        (["trian"], "trian: no such command; did you mean train?"),
        (["lunch"], "did you mean launch?"),
        (["frobnicate"], "no such command; lockstep --help lists all"),
        (["--verbose"], "COMMAND"),
        (["download", "--output", "o", "--verbose"], "--verbose"),
        (["download"], "--output"),
        (["download", "--output", "o", "--name", "imagenet"], "'imagenet'"),
        (["download", "--output", "o", "--test-fraction", "half"], "'half'"),
        (["partition", "--data", "d", "--output", "o", "--scheme", "sorted"], "'sorted'"),
        (["partition", "--data", "d", "--output", "o", "--shards", "1.5"], "'1.5'"),
        (["report", "r"], "--checks"),
        (["report", "r", "--runs", "a", "--checks", "c.json"], "not allowed"),
        (["summarize", "--output", "o"], "results"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_status_2(lockstep, words, expected):
    status, printed, errors = lockstep(*words)
    assert (status, printed) == (2, "")
    assert errors.count("\n") == 1
    assert errors.startswith("lockstep")
    assert expected in errors
    assert "--help" in errors


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["download", "--name", "npz", "--output", "o"],
            "flags: the dataset 'npz' needs key 'path'",
        ),
        (["download", "--mirror", "here", "--output", "o"], "flags: mirror"),
        (["config", "gone.yaml"], "gone.yaml: No such file"),
        (["download", "--name", "npz", "--path", "gone.npz", "--output", "o"], "gone.npz"),
        (["prepare", "--name", "mnist", "--output", "o"], "train-images-idx3-ubyte.gz"),
        (["partition", "--data", "gone", "--output", "o"], "gone/manifest.json"),
        (["train", "--data", "gone", "--partition", "p", "--output", "o", "--lr", "0"], "lr"),
        (["average", "--data", "d", "--results", "gone"], "gone/train.json"),
        (["summarize", "gone", "--output", "o.csv"], "gone"),
        (["check", "--data", "gone", "--output", "o"], "gone/manifest.json"),
        (["check", "--output", "o.csv"], "o.csv: the table gets this name"),
        (
            ["report", "gone", "--checks", "gone.json"],
            "gone/summary.csv",
        ),
        (["report", "gone", "--runs", "a"], "gone/a/train.json"),
    ],
)
def test_what_a_user_can_mend_is_one_line_and_status_2(
    lockstep, tmp_path, monkeypatch, words, expected
):
    monkeypatch.chdir(tmp_path)
    status, printed, errors = lockstep(*words)
    assert (status, printed) == (2, "")
    assert errors.count("\n") == 1
    assert errors.startswith(f"lockstep {words[0]}: ")
    assert expected in errors
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.slow
def test_a_rank_says_which_one_it_is(lockstep, monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "3")
    _, _, errors = lockstep("summarize", "gone", "--output", "o.csv")
    assert errors.startswith("lockstep summarize, rank 3: gone")


def alone(program, *words, cwd):
    """Run a program in a Python of its own."""
    return subprocess.run(
        [sys.executable, *program, *map(str, words)], cwd=cwd, capture_output=True, text=True
    )


@pytest.mark.slow
def test_the_package_runs_as_a_program(tmp_path):
    done = alone(["-m", "lockstep"], "partition", "--data", "d", "--output", "o", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("lockstep partition: d/manifest.json")


@pytest.fixture
def commands(tmp_path, write_part, write_records):
    """A command line of each stage that has no use for torch, and what it needs."""
    write_part(tmp_path / "data" / "train", [0, 1, 2] * 8)
    write_records(tmp_path / "run", Run())
    return {
        "download": ["--output", "raw"],
        "partition": ["--data", "data", "--output", "shards"],
        "summarize": ["run", "--output", "summary.csv"],
        "page": ["."],
    }


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["download", "partition", "summarize", "page"])
def test_stages_without_a_model_do_not_load_torch(commands, tmp_path, stage):
    program = (
        "import sys; from lockstep.pipeline.cli import main; main(sys.argv[1:]); "
        "assert not {'torch', 'mpi4py', 'torchvision'} & sys.modules.keys()"
    )
    done = alone(["-c", program], stage, *commands[stage], cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_help_loads_nothing_large(tmp_path):
    program = (
        "import sys, atexit; from lockstep.pipeline.cli import main; "
        "atexit.register(lambda: print('loaded:', *sys.modules)); main(sys.argv[1:])"
    )
    done = alone(["-c", program], "train", "--help", cwd=tmp_path)
    loaded = done.stdout.partition("loaded:")[2].split()
    assert "lockstep.pipeline.cli" in loaded
    assert not {"torch", "numpy", "pandas", "mpi4py"} & set(loaded)


@pytest.mark.parametrize(
    "words",
    [
        ["partition", "--data", "d", "--output", "o", "--shards", "0"],
        ["partition", "--data", "d", "--output", "o", "--alpha", "nan"],
        ["partition", "--data", "d", "--output", "o", "--seed", "-1"],
        ["check", "--output", "o", "--threads", "0"],
        ["check", "--output", "o", "--ranks", "0"],
        ["check", "--output", "o", "--seconds", "-1"],
        ["check", "--output", "o", "--seconds", "nan"],
        ["average", "--results", "r", "--data", "d", "--threads", "0"],
        ["evaluate", "--results", "r", "--data", "d", "--ranks", "0"],
    ],
)
def test_a_flag_out_of_range_is_named(lockstep, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, errors = lockstep(*words)
    assert status == 2
    assert errors.startswith(f"lockstep {words[0]}: flags: {words[-2].strip('-')}: ")
    assert errors.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(lockstep, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    status, _, errors = lockstep("download", "--output", "file/digits")
    assert (status, errors) == (2, "lockstep download: file/digits: Not a directory\n")


@pytest.mark.parametrize("words", ["completion bash", "init x", "train --help", "stop --help"])
def test_it_ends_quietly_where_nobody_reads_what_it_prints(words, tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "lockstep", *words.split()]
    done = subprocess.run(command, cwd=tmp_path, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert done.stderr == ""
    helps = "--help" in words  # argparse itself minds nothing
    assert done.returncode in (128 + signal.SIGPIPE, 0 if helps else None)


def test_a_broken_pipe_of_another_kind_is_an_error():
    assert not nobody_reads(BrokenPipeError())
    assert not nobody_reads(UserError())


@pytest.mark.parametrize("words", ["completion bash", "init x"])
def test_what_cannot_be_printed_is_a_line(words, tmp_path):
    command = [sys.executable, "-m", "lockstep", *words.split()]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True)
    (line,) = done.stderr.splitlines()
    assert line.endswith("No space left on device")
    assert done.returncode == 2
