"""reproduce: a recorded run again, on other numbers of ranks, through real mpirun."""

import json
import shutil
import sys

import pytest
import torch

from tests.conftest import REPOSITORY, mpirun, run
from tests.crew import run_shared
from tests.damage import change_record

CAPS = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"}


def train(digits, output, launcher, ranks, *flags, run=run_shared):
    words = ["train", "--data", digits, "--partition", digits / "4" / "shards.csv"]
    words += ["--model", "tests.mpi.models:busy", "--epochs", 1, "--snapshots", 1, "--shift", 2]
    words += ["--batch", 64, "--output", output, "--ranks", ranks, "--oversubscribe", *flags]
    done = run([*launcher, "-m", "lockstep", *words], REPOSITORY)
    assert done.returncode == 0, done.stderr
    return output


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    return train(digits, tmp_path_factory.mktemp("recorded"), mpirun(2), 2)


def reproduce(launcher, results, run=run_shared):
    return run([*launcher, "-m", "lockstep", "reproduce", results], REPOSITORY)


@pytest.mark.parametrize("launcher", [[sys.executable], mpirun(4)])
def test_a_run_gives_its_bits_on_other_ranks(launcher, trained, monkeypatch):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # of a shell or a batch system
        monkeypatch.setenv(name, "2")
    done = reproduce(launcher, trained)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 6
    assert [line for line in lines if "DIFFERENT" in line] == []
    assert lines[-1].startswith("the same bits with P = ")
    assert "note:" not in done.stderr


def test_a_launch_that_finds_all_done_is_not_recorded_as_who_has_done_it(digits, tmp_path):
    before = json.loads((train(digits, tmp_path, mpirun(2), 2) / "train.json").read_text())
    (tmp_path / "train.json").unlink()
    after = json.loads((train(digits, tmp_path, [sys.executable], 1) / "train.json").read_text())
    assert after["configuration"]["ranks"] == 2
    for key in ("launcher", "backend", "ranks", "segments", "bytes_sent", "model_sha256"):
        assert after[key] == before[key]


@pytest.mark.thorough
@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="there is nothing to cap"
)
def test_capped_instruction_sets_are_recorded_and_noted_and_give_other_bits(
    digits, trained, tmp_path, monkeypatch
):
    for name, value in CAPS.items():
        monkeypatch.setenv(name, value)
    done = reproduce(mpirun(2), trained, run)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "weights               DIFFERENT" in done.stdout
    for name, value in CAPS.items():
        line = f"{name}: {value} here, not set in the record"
        assert f"note: {line}" in done.stderr
        assert f"not as it was: {line}" in done.stdout
    capped = train(digits, tmp_path, mpirun(2), 2, run=run)
    record = json.loads((capped / "train.json").read_text())
    assert record["arithmetic"]["instruction_set"] == "DEFAULT"
    assert [place["caps"] for place in record["ranks"]] == [CAPS, CAPS]
    # With the same caps the promise is kept, here and on a processor of another kind.
    assert reproduce([sys.executable], capped, run).returncode == 0
    for name in CAPS:
        monkeypatch.delenv(name)
    assert reproduce([sys.executable], capped).returncode == 1


def refused(done):
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return next(line for line in done.stderr.splitlines() if line.startswith("lockstep reproduce"))


@pytest.mark.thorough
def test_what_cannot_be_tried_is_refused(digits, trained, tmp_path):
    assert "5 ranks cannot have a shard each of 4" in refused(reproduce(mpirun(5), trained))
    shutil.copy(trained / "train.json", tmp_path)
    change_record(tmp_path, partition_sha256="0" * 64)
    assert "shards.csv: has SHA-256" in refused(reproduce(mpirun(2), tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["train.json"]


@pytest.mark.thorough
def test_ddp_gives_its_bits_again_on_as_many_ranks(digits, tmp_path):
    trained = train(digits, tmp_path, mpirun(2), 2, "--strategy", "ddp")
    done = reproduce(mpirun(2), trained)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_comparison_that_is_told_to_stop_says_so_and_is_begun_anew(
    trained, tmp_path, monkeypatch
):
    words = ["reproduce", trained, "--output", tmp_path / "again"]
    monkeypatch.setenv("LOCKSTEP_FAULT", "step:1:0:usr1")
    done = run_shared([sys.executable, "-m", "lockstep", *words], REPOSITORY)
    assert "told to stop before the end" in refused(done)
    assert list((tmp_path / "again").glob("checkpoints/*/step-*"))
    monkeypatch.delenv("LOCKSTEP_FAULT")
    done = run_shared([sys.executable, "-m", "lockstep", *words], REPOSITORY)
    assert "holds checkpoints, and a run that is reproduced begins anew" in refused(done)
    assert list((tmp_path / "again").glob("checkpoints/*/step-*"))
