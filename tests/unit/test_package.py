"""`pip install lockstep` is the library alone: the pipeline's libraries are another's affair."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import lockstep.__main__
from tests.conftest import REPOSITORY

# What the extras bring, and what comes with the tests: none of it may be needed by the library.
ABSENT = {
    *("PIL", "cloudpickle", "jinja2", "matplotlib", "mpi4py", "pandas", "pooch", "psutil", "rich"),
    *("pydantic", "requests", "scipy", "sklearn", "snakemake", "torchvision", "tqdm", "yaml"),
}
# Python runs this before anything else. A name in sys.modules that is None is not to be had.
WITHOUT = f"import sys\nsys.modules |= dict.fromkeys({sorted(ABSENT)})\n"

ROOMS = ("reduce", "checkpoint", "strategies", "distributed", "measure", "testing")
FILES = sorted(path.stem for path in Path(lockstep.__file__).parent.glob("[a-z]*.py"))


IMPORT_EACH = """
import importlib, sys
failed = []
for name in sys.argv[1:]:
    try:
        importlib.import_module(f"lockstep.{name}")
    except ModuleNotFoundError as error:
        failed.append(f"{name} {error.name}")
print("\\n".join(failed))
"""


def modules() -> list[str]:
    """Return the library's modules, without those that the pipeline and MPI have for themselves."""
    root = Path(lockstep.__file__).parent
    rooms = [
        file.relative_to(root) for room in ROOMS for file in sorted((root / room).glob("*.py"))
    ]
    return [*FILES, *(".".join(path.with_suffix("").parts) for path in rooms)]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder that pip has installed the package to, beside which no library of an extra is."""
    source = tmp_path_factory.mktemp("source")  # where it is built, files are left
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(REPOSITORY / "src", source / "src", ignore=ignored)
    target = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run([*pip, "--target", target, source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (target / "sitecustomize.py").write_text(WITHOUT)
    return target


@pytest.fixture
def python(installed, tmp_path):
    """A function that runs this Python where the package alone is installed."""

    def run(*words):
        return subprocess.run(
            [sys.executable, *words],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(installed)},
            capture_output=True,
            text=True,
        )

    return run


def test_every_module_of_the_library_is_imported_with_the_core_alone(python, installed):
    done = python("-c", IMPORT_EACH, *modules())
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
    where = python("-c", "import lockstep; print(lockstep.__file__)").stdout
    assert Path(where.strip()).is_relative_to(installed)


def test_lockstep_itself_imports_nothing(python):
    code = "import sys, lockstep; print('torch' in sys.modules, 'numpy' in sys.modules)"
    assert python("-c", code).stdout == "False False\n"


def test_the_pipeline_says_what_to_install(python):
    done = python("-m", "lockstep", "train", "--help")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "lockstep: yaml is missing, which the pipeline needs; pip install 'lockstep[pipeline]'\n"
    )


def test_the_project_to_begin_with_comes_with_the_package(installed):
    here = REPOSITORY / "src/lockstep/pipeline/project"
    there = installed / "lockstep/pipeline/project"
    names = {path.relative_to(here) for path in here.rglob("*") if path.is_file()}
    # pip compiles what is Python.
    found = {path.relative_to(there) for path in there.rglob("*") if path.suffix != ".pyc"}
    assert {name for name in names if name.suffix != ".pyc"} | {
        *(Path("config"), Path("profiles"), Path("profiles/default"))
    } == {name for name in found if name.name != "__pycache__"}


@pytest.mark.parametrize("command", ["launch", "stop", "verify"])
def test_commands_of_the_library_need_no_pipeline(python, command):
    done = python("-m", "lockstep", command, "--help")
    assert done.returncode == 0, done.stderr
    assert f"usage: lockstep {command}" in done.stdout


def test_the_package_declares_what_it_needs(installed):
    (found,) = importlib.metadata.distributions(path=[str(installed)])
    core = [line for line in found.requires or [] if "extra ==" not in line]
    assert sorted(core) == ["numpy>=2", "safetensors", "torch<2.16,>=2.15"]
    assert (installed / "lockstep" / "py.typed").is_file()
    (command,) = found.entry_points.select(group="console_scripts")
    assert (command.name, command.load()) == ("lockstep", lockstep.__main__.main)


def test_the_locked_requirements_have_all_of_the_extras():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    asked = [project["dependencies"], *project["optional-dependencies"].values()]
    needed = {re.split(r"[\[<>=]", line)[0] for lines in asked for line in lines} - {"lockstep"}
    lines = (REPOSITORY / "envs/requirements.in").read_text().splitlines()
    assert needed <= {re.split(r"[\s<>=]", line)[0] for line in lines}
