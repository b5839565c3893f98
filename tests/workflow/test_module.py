"""The workflow as a module of another: docs/module.md."""

import re
import sys

import numpy as np
import pandas as pd
import pytest

from tests.conftest import REPOSITORY, run
from tests.crew import run_shared
from tests.workflow.conftest import Workspace

MODEL = """
from torch import nn


def tiny(shape, classes):
    pixels = shape[0] * shape[1] * shape[2]
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, classes))
"""
RUNS = "run\tranks\na\t2\n"
SNAKEFILE, CONFIG = re.findall(
    r"```(?:text|yaml)\n(.*?)```", (REPOSITORY / "docs/module.md").read_text(), re.DOTALL
)


class Outer:
    """A folder with another workflow, which has that of a workspace as a module."""

    def __init__(self, workspace: Workspace) -> None:
        self.folder = workspace.folder / "outer"
        # What the document shows, with the path of this copy.
        self.write("Snakefile", SNAKEFILE.replace("/home/me/lockstep", str(workspace.folder)))
        self.write("config/config.yaml", CONFIG + "  check_seconds: 0.2\n")
        self.write("config/runs.tsv", RUNS)
        self.write("zoo/net.py", MODEL)
        images = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 1), dtype=np.uint8)
        np.savez(self.folder / "squares.npz", images=images, labels=np.arange(60) % 3)

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def change(self, name: str, old: str, new: str) -> None:
        text = (self.folder / name).read_text()
        assert old in text
        self.write(name, text.replace(old, new))

    def snakemake(self, *words: object):
        command = [sys.executable, "-m", "snakemake", "--cores", "all", *words]
        done = run_shared(command, self.folder, 300)
        return done.returncode, done.stdout + done.stderr


@pytest.fixture
def outer(workspace):
    return Outer(workspace)


def test_a_module_runs_to_the_end(outer):
    status, said = outer.snakemake()
    assert status == 0, said
    made = outer.folder / "training"
    assert list(pd.read_csv(made / "results/lockstep/summary.csv")["run"]) == ["a"]
    assert {path.name for path in made.iterdir()} == {"data", "logs", "results"}
    assert {path.name for path in outer.folder.iterdir()} <= {
        *("Snakefile", "config", "zoo", "squares.npz", "training", ".snakemake"),
    }
    status, said = outer.snakemake()
    assert status == 0 and "Nothing to be done" in said
    status, said = outer.snakemake("--report", "report.html")
    assert status == 0, said
    page = (outer.folder / "report.html").read_text()
    assert "curves.svg" in page and "runs.html" in page
    # A change of the module's configuration has done again what depends on it, and no more.
    outer.change("config/config.yaml", "epochs: 2", "epochs: 3")
    _, said = outer.snakemake("--dry-run")
    assert "lockstep_train_run" in said and "lockstep_prepare" not in said


def test_a_repository_may_be_where_the_module_is_from(outer):
    top = outer.folder.parent
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", top]
    for words in (["init", "-q"], ["add", "workflow", "envs"], ["commit", "-qm", "1"]):
        assert run([*git, *words], top).returncode == 0
    commit = run([*git, "rev-parse", "HEAD"], top).stdout.strip()
    there = f'gitfile("{top}", path="workflow/Snakefile", commit="{commit}")'
    outer.change("Snakefile", f'"{top}/workflow/Snakefile"', there)
    # `lockstep` is not beside it, but installed.
    status, said = outer.snakemake("lockstep_partition")
    assert status == 0, said
    assert (outer.folder / "training/data").is_dir()


def test_two_modules_stand_side_by_side(outer):
    whole, _, _ = SNAKEFILE.partition("rule after")
    module = whole.partition("\n\n\n")[2].replace("/home/me/lockstep", str(outer.folder.parent))
    other = module.replace("lockstep_*", "second_*").replace('"training"', '"second"')
    other = other.replace("module lockstep", "module second").replace(
        "from lockstep", "from second"
    )
    text = (outer.folder / "Snakefile").read_text().partition("rule after")[0] + other
    outer.write(
        "Snakefile",
        text + "\n\nrule both:\n    default_target: True\n"
        "    input:\n        rules.lockstep_all.input,\n        rules.second_all.input,\n",
    )
    status, said = outer.snakemake("--dry-run")
    assert status == 0, said
    assert "output: training/results/lockstep/a/model.safetensors" in said
    assert "output: second/results/second/a/model.safetensors" in said


def test_weights_are_where_the_run_looks_for_them_whatever_the_prefix(outer):
    outer.change("config/config.yaml", '"zoo.net:tiny"', "resnet18, weights: torchvision:DEFAULT")
    status, said = outer.snakemake("--dry-run", "lockstep_train")
    assert status == 0, said
    assert "output: data/weights/resnet18-DEFAULT.pth" in said


def test_a_mistake_names_the_module(outer):
    outer.change("config/config.yaml", "epochs: 2", "epochz: 2")
    status, said = outer.snakemake("--dry-run")
    assert status == 2
    assert "\nlockstep: defaults.epochz: no such key; did you mean 'epochs'?" in "\n" + said
    assert "Traceback" not in said


def test_nodes_of_a_profile_are_those_of_the_new_name(outer):
    nodes = ["--set-resources", "lockstep_train_run:nodes=3"]
    status, said = outer.snakemake("--dry-run", *nodes)
    assert status == 2
    assert "nodes: the profile asks for 3, and the 2 ranks of the run a cannot share" in said
