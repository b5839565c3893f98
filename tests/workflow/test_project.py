"""What `lockstep init` writes runs at once: the pipeline, the loop on two ranks, its own tests."""

import json
import re
import sys

import pandas as pd
import pytest

from tests.conftest import mpirun, run
from tests.crew import run_shared


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("projects")
    done = run(["lockstep", "init", "demo"], folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "demo: written; cd demo, and its README.md tells what to do\n"
    return folder / "demo"


def test_the_pipeline_runs_to_its_page(project):
    # As its README.md says, but for the seconds in which `check` measures.
    snakemake = [sys.executable, "-m", "snakemake", "--config", "check_seconds=0.2", "--cores"]
    done = run_shared([*snakemake, "all"], project, 550)
    assert done.returncode == 0, done.stdout + done.stderr
    results = project / "results/config"
    assert str(results / "report.html").removeprefix(f"{project}/") in done.stdout + done.stderr
    assert "curves.svg" in (results / "report.html").read_text()
    summary = pd.read_csv(results / "summary.csv")
    assert list(summary["run"]) == ["one", "two"] and summary["accuracy_last"].min() > 0.9
    # What its README.md says of the two.
    assert summary["model_sha256"].nunique() == 1
    # The project's model is what they are of: a change of it has them trained again.
    assert json.loads((results / "one/train.json").read_text())["configuration"]["model"] == (
        "models:small"
    )
    model = project / "models.py"
    text = model.read_text()
    model.write_text(text.replace("64", "32"))
    done = run_shared([*snakemake, "2", "--dry-run"], project, 100)
    model.write_text(text)
    assert re.search(r"^train_run +2$", done.stdout + done.stderr, re.MULTILINE)


@pytest.mark.thorough
def test_the_loop_runs_by_itself_and_under_mpirun_to_the_same_bits(project):
    hashes = set()
    for command in ([sys.executable], mpirun(2)):
        for left in project.glob("out"):
            left.rename(project.parent / f"out{len(hashes)}")
        done = run([*command, "train.py"], project)
        assert done.returncode == 0, done.stderr
        *_, history, found = done.stdout.splitlines()
        assert "'accuracy': 0.9" in history
        hashes.add(found)
    assert len(hashes) == 1 and re.fullmatch("[0-9a-f]{64}", *hashes)


PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]


def test_its_own_tests_pass(project):
    done = run(PYTEST, project)
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


@pytest.mark.thorough
def test_its_own_tests_can_fail(project):
    loop = project / "train.py"
    text = loop.read_text()
    loop.write_text(text.replace("loss = F", "loss = (1 + session.rank) * F"))
    done = run(PYTEST, project)
    loop.write_text(text)
    assert done.returncode == 1, done.stdout
    assert "1 failed, 1 passed" in done.stdout and "the sum of loss differs" in done.stdout
