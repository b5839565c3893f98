"""`lockstep init`: what it writes, and what it refuses. tests/workflow/test_project.py runs it."""

import os

import pytest

from lockstep.pipeline.stages.init import PROJECT, init


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_project_is_written_whole_and_nothing_else(here):
    umask = os.umask(0o027)
    try:
        folder = init("Übung-1.b")
    finally:
        os.umask(umask)
    assert [path.name for path in here.iterdir()] == ["Übung-1.b"]
    found = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    names = {"Snakefile", "README.md", ".gitignore", "models.py", "train.py", "test_train.py"}
    assert set(map(str, found)) == names | {
        *("config/config.yaml", "config/runs.tsv", "profiles/default/config.yaml")
    }
    for name, path in found.items():
        assert path.read_bytes() == (PROJECT / name).read_bytes()
        assert path.stat().st_mode & 0o777 == 0o640
    assert folder.stat().st_mode & 0o777 == 0o750


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/tmp/a", "a b", "a\nb", "-a", ".a", "a\0"])
def test_what_is_no_name_of_a_folder_is_refused(name, here, refused):
    with refused(f"{name!r}: expected the name of a folder"):
        init(name)
    assert [path.name for path in here.iterdir()] == []


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_what_is_there_stays(kind, here, refused):
    path = here / "demo"
    {
        "file": path.touch,
        "folder": path.mkdir,
        "dangling link": lambda: path.symlink_to("nowhere"),
    }[kind]()
    before = path.lstat()
    with refused("demo: is there already; take another name"):
        init("demo")
    assert path.lstat() == before and [path.name for path in here.iterdir()] == ["demo"]


def test_a_package_without_the_workflow_says_where_that_is(here, refused, monkeypatch):
    monkeypatch.setattr("lockstep.pipeline.stages.init.SNAKEFILE", str(here / "Snakefile"))
    with refused(here / "Snakefile", "No such file", "pip install --editable"):
        init("demo")
    assert [path.name for path in here.iterdir()] == []
