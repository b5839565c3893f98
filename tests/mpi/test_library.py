"""The library in loops of one's own, through real launches: any number of ranks, the same bits."""

import functools
import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

from lockstep.testing.verify import compare
from tests.conftest import REPOSITORY, mpirun, run

EXAMPLES, PROGRAMS = REPOSITORY / "examples", REPOSITORY / "tests" / "mpi" / "programs"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]

# Few samples, and more than one epoch.
SCRIPTS = {
    "mnist": ["--samples", 300, "--epochs", 2],
    "gpt": ["--samples", 100, "--epochs", 2],
    "regression": ["--samples", 600, "--epochs", 3],
    "gan": ["--samples", 300, "--epochs", 3],
    "ddp_after": ["--samples", 300, "--epochs", 20],  # long enough to be interrupted
}
# Between them, these have most kinds of blocks.
DRAWN = (0, 1, 2, 3, 5, 6, 9, 12, 34)

# What is wrong with a script, and what verify says of it on 1 and 2 ranks.
FAULTS = {
    "data by rank": "step 1, shard 2: the input of the model differs between 1 rank and rank 1 of",
    "attribute": "the output of ",
    "a mean over the ranks": "step 1, shard 0: the sum of loss differs between 1 rank and rank 0",
    "torch's random numbers": "step 1, shard 2: the state of torch's random numbers differs",
    "gradients in the loop": "step 1, shard 2: the gradient of last.bias differs",
    "clipping": "step 1, after optimizer.step(): the gradient of first.weight differs",
    "rate": "step 1, after optimizer.step(): what is set in optimizers differs",
    "weights": "step 2, after optimizer.step(): the weight first.weight differs between",
    "buffers": "step 1, after optimizer.step(): the buffer norm.running_mean differs",
    "batch": "step 1, shard 0: the choice of samples differs",
    "epochs": "step 4, shard 0: 1 rank did not come to it, and 2 ranks did",
    "none": "the same bits: 1, 2 ranks, 3 steps, sha256 ",
}


Bits = list[object]
"""What of a record must not depend on how it came about."""


def idx(path: Path, values: np.ndarray) -> None:
    """Write an IDX file: a magic number, the sizes, the bytes."""
    head = bytes([0, 0, 8, values.ndim]) + b"".join(n.to_bytes(4) for n in values.shape)
    path.write_bytes(head + values.tobytes())


@pytest.fixture(scope="module")
def mnist(tmp_path_factory) -> Path:
    folder, draw = tmp_path_factory.mktemp("mnist"), np.random.default_rng(0)
    for part, count in (("train", 300), ("t10k", 50)):
        pixels = draw.integers(0, 256, (count, 28, 28), np.uint8)
        idx(folder / f"{part}-images-idx3-ubyte", pixels)
        idx(folder / f"{part}-labels-idx1-ubyte", draw.integers(0, 10, count, np.uint8))
    return folder


def cases(
    mnist: Path, folder: Path, drawn: Iterable[int] = (), faults: Iterable[str] = ()
) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    for name, words in SCRIPTS.items():
        words = [EXAMPLES / f"{name}.py", "--output", folder / name, *words]
        found.append({"words": words + (["--data", mnist] if name == "mnist" else [])})
    for number in drawn:
        words = [PROGRAMS / "own_drawn.py", number, folder / f"drawn-{number}"]
        found.append({"words": words})
    for fault in faults:
        trace = folder / "traces" / fault
        words = [PROGRAMS / "own_faults.py", fault, folder / "unused"]
        found.append({"words": words, "trace": f"{trace}:{10 if fault == 'epochs' else 3}"})
    return found


def launch(launcher: list[str], what: list[dict[str, object]], folder: Path) -> dict[str, Bits]:
    """Run scripts by one launch; return the hash of each result's record, by its folder's name."""
    folder.mkdir(parents=True, exist_ok=True)
    for case in what:
        case["words"] = [str(word) for word in case["words"]]
    (folder / "cases.json").write_text(json.dumps(what))
    words = [*launcher, "-m", "tests.mpi.programs.scripts", folder / "cases.json"]
    done = run(words, REPOSITORY, timeout=500)
    assert done.returncode == 0, done.stderr
    records = {p.parent.name: json.loads(p.read_text()) for p in sorted(folder.glob("*/run.json"))}
    kept = ("model_sha256", "optimizer_sha256", "history")
    return {name: [record[key] for key in kept] for name, record in records.items()}


@pytest.fixture(scope="module")
def results(mnist, tmp_path_factory) -> Callable[[int], tuple[Path, dict[str, Bits]]]:
    """Return a function that gives the folder of results on so many ranks, and their bits."""

    @functools.cache
    def of(ranks: int) -> tuple[Path, dict[str, Bits]]:
        folder = tmp_path_factory.mktemp(f"ranks-{ranks}")
        faults = FAULTS if ranks < 3 else ()
        launcher = mpirun(ranks) if ranks > 1 else [sys.executable]
        return folder, launch(launcher, cases(mnist, folder, DRAWN, faults), folder)

    return of


@pytest.mark.parametrize("name", [*SCRIPTS, *(f"drawn-{number}" for number in DRAWN)])
def test_a_script_has_the_same_bits_on_1_2_and_3_ranks(name, results):
    one = results(1)[1][name]
    assert [results(ranks)[1][name] for ranks in (2, 3)] == [one, one]


@pytest.mark.parametrize("fault", FAULTS)
def test_verify_names_what_first_differs(fault, results):
    folders = {ranks: results(ranks)[0] / "traces" / fault for ranks in (1, 2)}
    same, text = compare(folders)
    assert same == (fault == "none")
    assert FAULTS[fault] in text


def test_the_bits_are_the_same_over_gloo_and_the_loop_before_the_port_runs(
    mnist, results, tmp_path
):
    before = {"words": [EXAMPLES / "ddp_before.py", "--output", tmp_path / "b", "--samples", 300]}
    found = launch(TORCHRUN, [before, *cases(mnist, tmp_path)], tmp_path)
    assert found == {name: results(1)[1][name] for name in SCRIPTS}
    assert (tmp_path / "b" / "model.pt").exists()


def test_a_run_goes_on_after_a_signal_and_a_kill_on_other_numbers_of_ranks(
    results, tmp_path, monkeypatch
):
    words = [EXAMPLES / "ddp_after.py", "--output", tmp_path, *SCRIPTS["ddp_after"]]
    monkeypatch.setenv("LOCKSTEP_FAULT", "step:1:1:usr1")
    done = run([*mpirun(2), *words], REPOSITORY)
    assert done.returncode == 75, done.stderr
    assert re.search(
        "ddp_after.py, rank 0: interrupted by SIGUSR1 after step [0-9]+; ", done.stderr
    )
    monkeypatch.setenv("LOCKSTEP_FAULT", "step:30:1:kill")
    done = run([*TORCHRUN, *words], REPOSITORY)
    assert done.returncode not in (0, 75)
    assert "going on after step" in done.stderr
    monkeypatch.delenv("LOCKSTEP_FAULT")
    done = run([sys.executable, *words], REPOSITORY)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["model_sha256"] == results(1)[1]["ddp_after"][0] == done.stdout.strip()
    assert record["history"] == results(1)[1]["ddp_after"][2]


def test_a_model_that_ranks_have_otherwise_is_refused_in_one_line(tmp_path):
    words = [PROGRAMS / "own_faults.py", "weights at the start", tmp_path]
    done = run([*mpirun(2), *words], REPOSITORY)
    said = [line for line in done.stderr.splitlines() if line.startswith("own_faults.py")]
    assert done.returncode == 2
    assert len(said) == 1, done.stderr
    assert re.match("own_faults.py, rank 0, line [0-9]+: initial weights: SHA-256 is", said[0])
    assert "Traceback" not in done.stderr


def test_a_model_that_is_in_eval_on_one_rank_alone_is_refused_in_one_line(tmp_path):
    done = run([*mpirun(2), PROGRAMS / "own_faults.py", "eval", tmp_path], REPOSITORY)
    assert done.returncode == 2
    said = r"modes: training of the model is (True|False) on rank .*; call train\(\), eval\(\) and"
    assert re.search(said, done.stderr), done.stderr
    assert "Traceback" not in done.stderr


def test_other_numbers_of_samples_on_two_ranks_are_refused_in_one_line(tmp_path):
    done = run([*mpirun(2), PROGRAMS / "own_faults.py", "samples by rank", tmp_path], REPOSITORY)
    assert done.returncode == 2
    said = (
        r"settings: samples is (48|40) on rank .*; give session.run and run.steps the same on all"
    )
    assert re.search(said, done.stderr), done.stderr
    assert "Traceback" not in done.stderr


def test_more_ranks_than_shards_are_refused_in_one_line(tmp_path):
    done = run([*mpirun(2), PROGRAMS / "own_faults.py", "one shard", tmp_path], REPOSITORY)
    assert done.returncode == 2
    assert "shards: 2 ranks cannot share 1 shards" in done.stderr
    assert "Traceback" not in done.stderr


def verify(*words: object):
    return run([sys.executable, "-m", "lockstep", "verify", *words], REPOSITORY)


def test_verify_says_that_a_script_has_the_same_bits_and_leaves_its_folder_alone(tmp_path):
    words = [EXAMPLES / "ddp_after.py", "--output", tmp_path, "--samples", 300]
    done = verify(*words, "--ranks", "1,2", "--steps", 2, "--backend", "gloo")
    assert done.returncode == 0, done.stderr
    said = "the same bits: 1, 2 ranks, 2 steps, sha256 [0-9a-f]{64}"
    assert re.fullmatch(said, done.stdout.strip())
    assert list(tmp_path.iterdir()) == []


def test_verify_names_the_fault_of_a_script(tmp_path):
    words = [PROGRAMS / "own_faults.py", "data by rank", tmp_path]
    done = verify("--ranks", "1,2", *words)
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("step 1, shard 2: the input of the model differs between 1 rank")
    assert "data that are read by rank" in done.stdout


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("print('nothing')", "verify: no step of lockstep's was done; expected a script that"),
        ("import lockstep\nlockstep.init(shards=0)", "expected shards from 1 and a seed from 0"),
        ("1 / 0", "verify: 1 rank: the script failed with status 1: ZeroDivisionError: division"),
    ],
)
def test_verify_says_in_one_line_that_a_script_cannot_be_verified(source, said, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(source)
    done = verify(script, "--ranks", "1,2", "--backend", "gloo")
    assert done.returncode == 2
    assert said in done.stderr.splitlines()[-1]


def test_verify_wants_a_script_and_numbers(tmp_path):
    assert "missing.py: no such file" in verify(tmp_path / "missing.py").stderr
    assert "two numbers of ranks at least" in verify("x.py", "--ranks", "2").stderr
    assert "expected a number from 1" in verify("x.py", "--steps", "0").stderr
