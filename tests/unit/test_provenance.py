"""provenance: a change of the code shows in its digest, a change of its words does not."""

import os
import shutil
import signal
import subprocess
import sys
import typing
from pathlib import Path

import pytest

from lockstep import provenance
from lockstep.pipeline.config import Run
from lockstep.pipeline.stages.partition import partition


@pytest.fixture
def package(repository, tmp_path, monkeypatch):
    """A copy of the package, to edit; `tmp_path` is the working directory."""
    copy = tmp_path / "copy" / "lockstep"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(repository / "src" / "lockstep", copy, ignore=ignored)
    monkeypatch.setattr(provenance, "PACKAGE", copy)
    monkeypatch.chdir(tmp_path)
    return copy


@pytest.fixture
def digest(package):
    """A function that digests a stage of the copy, or a training of a model below `tmp_path`."""

    def run(stage="train", model=""):
        if stage == "train":
            return provenance.training_digest("sync_sgd", model)
        return provenance.code_digest(f"lockstep.pipeline.stages.{stage}")

    return run


def change(tmp_path, file, old, new):
    path = tmp_path / "copy" / "lockstep" / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_a_copy_has_the_same_digest_whoever_computes_it(digest, repository):
    program = "from lockstep.provenance import training_digest as of; print(of('sync_sgd'))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(repository / "src")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == digest()
    assert len(digest()) == 16


def test_comments_docstrings_and_layout_do_not_count(digest, tmp_path):
    before = digest()
    change(tmp_path, "pipeline/optim.py", '"""Optimizers', '"""All the optimizers')
    change(
        tmp_path, "pipeline/optim.py", "import math\n", "import math  # cosines\n\n# And more\n\n"
    )
    change(tmp_path, "pipeline/optim.py", "return run.lr\n", "return (\n        run.lr\n    )\n")
    change(tmp_path, "pipeline/config.py", '"""The optimizer."""', '"""Which one."""')
    assert digest() == before


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("pipeline/stages/train.py", "run.epochs", "(run.epochs + 1)"),  # the stage itself
        ("pipeline/optim.py", "math.pi", "3.14"),
        ("reduce/tree.py", "node.index // 2", "node.index >> 1"),
        ("random.py", '"stable"', '"quicksort"'),
        ("reduce/__init__.py", '"""Sums', 'x = 1\n"""Sums'),
    ],
)
def test_code_that_train_runs_counts(digest, tmp_path, file, old, new):
    before = digest()
    change(tmp_path, file, old, new)
    assert digest() != before


def test_code_that_a_stage_does_not_run_does_not_count(digest, tmp_path):
    before = digest("partition"), digest("train")
    change(tmp_path, "pipeline/optim.py", "math.pi", "3.14")
    assert digest("partition") == before[0]
    assert digest("train") != before[1]


@pytest.mark.slow
def test_all_that_python_loads_for_a_stage_counts(digest, tmp_path):
    modules = "lockstep.pipeline.stages.evaluate, lockstep.mpi.backend"
    program = f"import sys, {modules}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-B", "-c", program],
        env={
            **os.environ,
            "PYTHONPATH": str(tmp_path / "copy"),
            "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",  # what `import torch` loads for everyone
        },
        capture_output=True,
        text=True,
        check=True,
    )
    before = digest("evaluate")
    loaded = [name for name in done.stdout.split() if name.partition(".")[0] == "lockstep"]
    assert {"lockstep.reduce.layout", "lockstep.mpi.progress"} <= set(loaded)
    for name in loaded:
        stem = tmp_path.joinpath("copy", *name.split("."))
        path = stem / "__init__.py" if stem.is_dir() else stem.with_suffix(".py")
        text = path.read_text()
        path.write_text(text + "\nchanged = True\n")
        # What the configuration changes of a result is in the flags.
        unchanged = digest("evaluate") == before
        assert unchanged == (name == "lockstep.pipeline.config"), name
        path.write_text(text)


WORDS = [
    ("mpi/watchdog.py", "another rank has failed", "one of the ranks has failed"),
    ("distributed/signals.py", 'name="signals"', 'name="handler"'),
    ("pipeline/report/page.py", "font-size: 20px", "font-size: 21px"),
    ("pipeline/cli.py", "the folder of the run", "the run's folder"),
    ("checkpoint/store.py", 'name="writer"', 'name="its writer"'),
    ("errors.py", "flush=True", "flush=False"),
    ("strategies/__init__.py", '"""Strategies:', '"""The strategies:'),
    ("strategies/fsdp.py", "import torch\n", "import torch\n\nchanged = True\n"),  # another's
    ("pipeline/optim.py", '"""Optimizers', '"""All the optimizers'),
    ("pipeline/optim.py", "has no parameter that is trained", "trains nothing"),
    ("pipeline/models/__init__.py", "{name} gave {type(model).__name__}", "{name} is odd"),
    ("pipeline/stages/train.py", "reading {size", "it reads {size"),
    ("reduce/tree.py", "import torch\n", "import torch  # and numpy\n"),
]
DEEDS = [
    ("reduce/tree.py", "node.index // 2", "node.index >> 1"),
    ("random.py", '"stable"', '"quicksort"'),
    ("strategies/sync_sgd.py", "rows, total = together(", "rows, sum_ = together("),
    ("strategies/replicated.py", "import torch\n", "import torch\n\nchanged = True\n"),
    ("pipeline/tasks/classification.py", "argmax(dim=1)", "argmin(dim=1)"),
    ("pipeline/optim.py", "math.pi", "3.14"),
    ("pipeline/models/__init__.py", "kernel_size=5", "kernel_size=3"),
    ("pipeline/data/batches.py", "import numpy as np\n", "import numpy as np\n\nx = 1\n"),
    ("determinism.py", "set_flush_denormal(True)", "set_flush_denormal(False)"),
    ("pipeline/stages/train.py", "run.epochs", "(run.epochs + 1)"),  # the loop
]


def test_what_decides_no_bits_is_no_part_of_a_trainings_code(package, tmp_path):
    before = provenance.code_of_training("sync_sgd", "cnn")
    for file, old, new in WORDS:
        change(tmp_path, file, old, new)
        assert provenance.code_of_training("sync_sgd", "cnn") == before, file


@pytest.mark.parametrize(("file", "old", "new"), DEEDS)
def test_what_decides_bits_is_part_of_a_trainings_code(package, tmp_path, file, old, new):
    before = provenance.code_of_training("sync_sgd", "cnn")
    change(tmp_path, file, old, new)
    now = provenance.code_of_training("sync_sgd", "cnn")
    assert provenance.other_code(before, now) == f"lockstep/{file}"


@pytest.mark.parametrize("strategy", typing.get_args(Run.model_fields["strategy"].annotation))
def test_of_the_strategies_the_runs_own_counts(package, strategy):
    room = package / "strategies"
    names = {
        "single": {"sync_sgd", "replicated", "ema"},
        "sync_sgd": {"sync_sgd", "replicated", "ema"},
        "ddp": {"ddp", "replicated", "ema"},
        "data_parallel": {"data_parallel", "replicated", "ema"},
        "local_sgd": {"local_sgd"},
        "pipeline": {"pipeline", "split"},
        "hybrid": {"hybrid", "pipeline", "split"},
        "fsdp": {"fsdp", "parts", "replicated", "ema", "split"},
    }[strategy]
    before = provenance.code_of_training(strategy)
    for path in room.glob("*.py"):
        text = path.read_text()
        path.write_text(text + "\nchanged = True\n")
        counts = path.stem in {*names, "task"}  # what losses are made of
        assert (provenance.code_of_training(strategy) != before) == counts, path
        path.write_text(text)


def test_texts_of_errors_and_what_is_there_for_types_alone_rerun_no_stage(digest, tmp_path):
    before = digest("evaluate")
    change(tmp_path, "pipeline/tasks/validation.py", "its scores of sample", "what it says of")
    change(tmp_path, "tensors.py", "not a whole safetensors file", "damaged")
    change(tmp_path, "distributed/rendezvous.py", "the ranks have not met", "they have not met")
    change(tmp_path, "strategies/fsdp.py", "import torch\n", "import torch\n\nchanged = True\n")
    assert digest("evaluate") == before
    change(tmp_path, "files.py", "nested too deeply", "too deep")  # kept in a name: that is code
    assert digest("evaluate") != before


def test_a_say_of_the_users_own_is_code(package, tmp_path):
    for text, more in (
        ("def say(x): return x\n\ndef make(): return say('{}')\n", True),
        ("from lockstep.errors import say\n\ndef make(): say('{}')\n", False),
        ("def make(): raise ValueError(f'{}')\n", False),
        ("from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    x = '{}'\n", False),
        ("from typing import TYPE_CHECKING\n\nif not TYPE_CHECKING:\n    x = '{}'\n", True),
    ):
        found = set()
        for word in ("one", "two"):
            (tmp_path / "own.py").write_text(text.format(word))
            found.add(provenance.code_of_training("sync_sgd", "own:make")["own.py"])
        assert (len(found) == 2) == more, text


def test_a_script_counts_with_what_it_imports_from_its_folder(package, tmp_path):
    folder = tmp_path / "project"
    (folder / "zoo").mkdir(parents=True)
    files = {
        "train-it.py": "import lockstep, sizes, numpy\nfrom zoo import own\n",
        "sizes.py": "width = 1\n",
        "zoo/__init__.py": "",
        "zoo/own.py": "width = 1\n",
        "other.py": "width = 1\n",
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    (tmp_path / "sizes.py").write_text("")  # the working directory's is not the script's
    before = provenance.code_of_script(folder / "train-it.py")
    assert {*before} & {*files} == {*files} - {"other.py"}
    assert "lockstep/reduce/tree.py" in before
    assert not [name for name in before if "pipeline" in name]
    for name in files:
        (folder / name).write_text(files[name] + "more = 1\n")
        found = provenance.code_of_script(folder / "train-it.py")
        assert provenance.other_code(before, found) == ("" if name == "other.py" else name)
        (folder / name).write_text(files[name])
    # As `python -m zoo.train` starts it.
    (folder / "zoo" / "train.py").write_text("from . import own\nfrom zoo import own\n")
    found = provenance.code_of_script(folder / "zoo" / "train.py")
    assert {"train.py", "zoo/__init__.py", "zoo/own.py"} <= found.keys()


@pytest.mark.thorough
def test_a_run_goes_on_after_an_edit_that_changes_no_bit(package, digits, tmp_path):
    partition(digits, "iid", 2, 0, 0.5, tmp_path / "shards")
    words = ["train", "--data", digits, "--partition", tmp_path / "shards" / "shards.csv"]
    words += ["--output", tmp_path / "run", "--strategy", "single", "--ranks", 1, "--shards", 2]
    words += ["--model", "linear", "--epochs", 1, "--checkpoint-every", "1 step"]

    def go(until):
        env = {**os.environ, "PYTHONPATH": str(package.parent)}
        done = subprocess.run(
            [sys.executable, "-B", "-m", "lockstep", *map(str, words)],
            env={**env, "LOCKSTEP_FAULT": f"step:{until}:0:kill"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == -signal.SIGKILL, done.stderr
        return done.stderr

    assert "going on" not in go(4)
    for file, old, new in WORDS:
        change(tmp_path, file, old, new)
    assert "going on after step" in go(8)
    change(tmp_path, *DEEDS[0])
    said = go(8)
    assert "not used: other code: lockstep/reduce/tree.py" in said
    assert "going on" not in said


def test_the_users_model_counts(digest, tmp_path):
    none = digest(model="cnn")
    assert digest(model="gone:make") == none == digest()
    (tmp_path / "zoo").mkdir()
    for file, name in (
        ("own.py", "own"),
        ("zoo/own.py", "zoo.own"),
        ("zoo/__init__.py", "zoo"),
    ):
        path = tmp_path / file
        path.write_text("def make(): return 1\n")
        first = digest(model=f"{name}:make")
        path.write_text('def make():\n    """Say one."""\n    return 1  # one\n')
        assert digest(model=f"{name}:make") == first
        path.write_text("def make(): return 2\n")
        assert len({none, first, digest(model=f"{name}:make")}) == 3


def test_what_the_users_model_imports_counts(digest, tmp_path):
    (tmp_path / "zoo").mkdir()
    (tmp_path / "zoo/__init__.py").write_text("from .parts import block\n")
    (tmp_path / "zoo/own.py").write_text("from . import sizes\nimport elsewhere\n")
    for file in ("zoo/parts.py", "zoo/sizes.py", "elsewhere.py"):
        (tmp_path / file).write_text("width = 1\n")
    for file in ("zoo/parts.py", "zoo/sizes.py", "elsewhere.py"):
        before = digest(model="zoo.own:make")
        (tmp_path / file).write_text("width = 2\n")
        assert digest(model="zoo.own:make") != before, file


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A function that makes files in a folder beside the working one, where Python looks too."""

    def make(folder, files):
        root = tmp_path.parent / f"{tmp_path.name}-beside" / folder
        for name, text in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        monkeypatch.syspath_prepend(root)
        return root

    return make


def test_a_model_from_pythonpath_counts_by_its_files_and_what_they_import(digest, elsewhere):
    files = {
        "zoo_a/__init__.py": "",
        "zoo_a/own.py": "from zoo_a import sizes\nimport zoo_b\nimport json, numpy, gone\n",
        "zoo_a/sizes.py": "width = 1\n",
        "zoo_b.py": "width = 1\n",
        "zoo_c.py": "width = 1\n",
    }
    root = elsewhere("lib", files)
    before = digest(model="zoo_a.own:make")
    found = provenance.code_of_training("sync_sgd", "zoo_a.own:make")
    names = [name for name in found if "zoo" in name]
    assert names == ["zoo_a/__init__.py", "zoo_a/own.py", "zoo_a/sizes.py", "zoo_b.py"]
    for name in names:
        (root / name).write_text(files[name] + "more = 1\n")
        assert digest(model="zoo_a.own:make") != before, name
        (root / name).write_text(files[name] + "# more\n")
    assert digest(model="zoo_a.own:make") == before


def test_an_installed_package_counts_by_its_version_and_that_of_the_model_by_its_files_as_well(
    digest, elsewhere, tmp_path
):
    files = {
        "zoo_d/__init__.py": "import zoo_e\n",
        "zoo_e.py": "width = 1\n",
        "zoo_d-1.2.dist-info/METADATA": "Metadata-Version: 2.1\nName: zoo-d\nVersion: 1.2\n",
        "zoo_d-1.2.dist-info/top_level.txt": "zoo_d\n",
    }
    root = elsewhere("site-packages", files)
    (tmp_path / "own.py").write_text("import zoo_d, zoo_e\n")
    provenance._version.cache_clear()
    found = provenance.code_of_training("sync_sgd", "own:make")
    assert found["zoo_d"] == "zoo-d 1.2"
    assert len(found["zoo_e"]) == 16  # it is of no distribution: its files are what there is
    inside = provenance.code_of_training("sync_sgd", "zoo_d:make")["zoo_d"]
    assert inside.startswith("zoo-d 1.2 ")
    (root / "zoo_d" / "__init__.py").write_text("width = 2\n")
    provenance._content.cache_clear()
    assert provenance.code_of_training("sync_sgd", "own:make")["zoo_d"] == "zoo-d 1.2"
    assert provenance.code_of_training("sync_sgd", "zoo_d:make")["zoo_d"] != inside


def test_files_whose_code_differs_are_named():
    then = {f"{name}.py": "1" for name in "abcde"}
    assert provenance.other_code(then, then) == ""
    assert provenance.other_code(then, then | {"b.py": "2", "f.py": "1"}) == "b.py, f.py"
    assert provenance.other_code(then, {}) == "a.py, b.py, c.py and 2 more"


def test_versions_name_what_results_depend_on():
    found = provenance.versions()
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"torch", "numpy", "pandas"} <= found.keys()


def test_the_state_of_a_repository_is_its_commit_and_whether_files_differ(tmp_path, monkeypatch):
    def git(*words):
        done = subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words],
            cwd=tmp_path,
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip()

    monkeypatch.setattr(provenance, "PACKAGE", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance.git_state() is None
    git("init", "--quiet")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "--quiet", "--message", "One")
    commit = git("rev-parse", "HEAD")
    clean = {"commit": commit, "modified": False, "untracked": []}
    assert provenance.git_state() == clean
    (tmp_path / "result").write_text("not followed")
    assert provenance.git_state() == clean
    # Of the model, what the commit does not have is named.
    monkeypatch.chdir(tmp_path)
    for name in ("own.py", "parts.py"):
        (tmp_path / name).write_text("import parts\n")
    monkeypatch.setattr(provenance, "PACKAGE", tmp_path / "workflow")
    (tmp_path / "workflow").mkdir()
    assert provenance.git_state("own:make") == clean | {"untracked": ["own.py", "parts.py"]}
    git("add", "parts.py")
    assert provenance.git_state("own:make") == clean | {
        "modified": True,
        "untracked": ["own.py"],
    }
    git("commit", "--quiet", "--message", "Two")
    (tmp_path / "file").write_text("two")
    state = provenance.git_state()
    assert state["commit"] != commit
    assert state["modified"]
    # A name may be of any bytes.
    odd = Path(os.fsdecode(bytes(tmp_path) + b"/mu\xfc.txt"))
    odd.write_text("three")
    git("add", ".")
    git("commit", "--quiet", "--message", "Three")
    state = provenance.git_state("own:make")
    assert (state["modified"], state["untracked"]) == (False, [])
