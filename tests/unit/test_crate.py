"""What `lockstep crate` refuses; tests/workflow/test_digits.py makes one."""

import sys

import pytest

from lockstep.pipeline.config import Run
from lockstep.pipeline.stages.crate import OF_ALL, crate


@pytest.fixture
def results(tmp_path):
    """The folder of an experiment that has its report, and no run."""
    folder = tmp_path / "results"
    folder.mkdir()
    for name in OF_ALL:
        (folder / name).write_text("run\ngone\n")
    return folder


@pytest.mark.parametrize("license", ["", "CC BY", "ftp://x", "https://", "MIT\n", "../../x"])
def test_what_is_no_license_is_refused(license, results, tmp_path, refused):
    with refused("flags: license: expected an identifier such as CC-BY-4.0", repr(license)):
        crate(results, license, tmp_path / "crate")


def test_what_is_there_stays(results, tmp_path, refused):
    with refused(tmp_path, "is there already"):
        crate(results, "MIT", tmp_path)


@pytest.mark.parametrize("name", OF_ALL)
def test_a_file_that_is_missing_is_named(name, results, tmp_path, refused):
    (results / name).unlink()
    with refused(results / name, "No such file; expected the folder of an experiment"):
        crate(results, "MIT", tmp_path / "crate")


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("run\n", "summary.csv: there is no run in it"),
        ("run,model_sha256\nhere,{}\ngone,{}\n", "gone, a run of summary.csv, is not here"),
        ("run,model_sha256\nhere,{}0\n", "has another model of here than"),
    ],
)
def test_runs_other_than_those_of_the_summary_are_refused(
    table, said, results, tmp_path, refused, write_records
):
    model = "ab" * 32
    write_records(results / "here", Run(), model)
    (results / "summary.csv").write_text(table.format(model, model))
    with refused(results, said):
        crate(results, "MIT", tmp_path / "crate")
    assert not (tmp_path / "crate").exists()


def test_without_the_library_it_says_what_to_install(results, tmp_path, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "rocrate.rocrate", None)
    with refused("pip install 'lockstep[crate]'"):
        crate(results, "MIT", tmp_path / "crate")
