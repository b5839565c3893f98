"""provenance: a change of the code shows in its digest, a change of its words does not."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lockstep import provenance


@pytest.fixture
def digest(repository, tmp_path, monkeypatch):
    """A function that digests a stage of a copy of the package, and a model below `tmp_path`."""
    copy = tmp_path / "copy" / "lockstep"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(repository / "src" / "lockstep", copy, ignore=ignored)
    monkeypatch.setattr(provenance, "PACKAGE", copy)
    monkeypatch.chdir(tmp_path)

    def run(stage="train", model=""):
        return provenance.code_digest(f"lockstep.pipeline.stages.{stage}", model)

    return run


def change(tmp_path, file, old, new):
    path = tmp_path / "copy" / "lockstep" / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_a_copy_has_the_same_digest_whoever_computes_it(digest, repository):
    stage = "lockstep.pipeline.stages.train"
    program = f"from lockstep.provenance import code_digest; print(code_digest({stage!r}))"
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
        ("pipeline/optim.py", "math.pi", "3.14"),  # what it imports
        ("reduce/tree.py", "node.index // 2", "node.index >> 1"),  # what that imports
        ("random.py", '"stable"', '"quicksort"'),
        ("strategies/ddp.py", "self.shared.zero_grad()", "pass"),  # what is imported late
        ("__init__.py", "__version__ = ", "__version__ = 'x' + "),  # the package of all
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


def test_all_that_python_loads_to_train_counts(digest, tmp_path):
    modules = "lockstep.pipeline.stages.train, lockstep.strategies.ddp, lockstep.mpi.backend"
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
    before = digest()
    loaded = [name for name in done.stdout.split() if name.partition(".")[0] == "lockstep"]
    assert {"lockstep.reduce.tree", "lockstep.mpi.progress"} <= set(loaded)
    for name in loaded:
        stem = tmp_path.joinpath("copy", *name.split("."))
        path = stem / "__init__.py" if stem.is_dir() else stem.with_suffix(".py")
        text = path.read_text()
        path.write_text(text + "\nchanged = True\n")
        # What the configuration changes of a result is in the flags.
        assert (digest() == before) == (name == "lockstep.pipeline.config"), name
        path.write_text(text)


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
    names = [
        n for n in provenance.code("lockstep.pipeline.stages.train", "zoo_a.own:make") if "zoo" in n
    ]
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
    found = provenance.code("lockstep.pipeline.stages.train", "own:make")
    assert found["zoo_d"] == "zoo-d 1.2"
    assert len(found["zoo_e"]) == 16  # it is of no distribution: its files are what there is
    inside = provenance.code("lockstep.pipeline.stages.train", "zoo_d:make")["zoo_d"]
    assert inside.startswith("zoo-d 1.2 ")
    (root / "zoo_d" / "__init__.py").write_text("width = 2\n")
    provenance._content.cache_clear()
    assert provenance.code("lockstep.pipeline.stages.train", "own:make")["zoo_d"] == "zoo-d 1.2"
    assert provenance.code("lockstep.pipeline.stages.train", "zoo_d:make")["zoo_d"] != inside


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
