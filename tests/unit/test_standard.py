"""The repository is what Snakemake's workflow catalogue, and conda, take it for."""

import re
import tomllib

import yaml
from packaging.requirements import Requirement

from tests.conftest import REPOSITORY

PYTHON = "3.11"  # of the conda environment
OF_CONDA = {"matplotlib-base": "matplotlib", "snakemake-minimal": "snakemake"}


def environment() -> dict[str, str]:
    """Return the packages of the conda environment, and the versions that they are to have."""
    listed = yaml.safe_load((REPOSITORY / "envs/environment.yaml").read_text())["dependencies"]
    assert listed[0] == f"python ={PYTHON}"
    (of_pip,) = (entry["pip"] for entry in listed if isinstance(entry, dict))
    lines = [entry for entry in listed[1:] if isinstance(entry, str) and entry != "pip"]
    found = dict(re.fullmatch(r"([\w-]+) ==?([\d.]+)", line).groups() for line in lines + of_pip)
    return {OF_CONDA.get(name, name): version for name, version in found.items()}


def locked() -> dict[str, str]:
    """Return the packages of requirements.txt for that Python, and their versions."""
    lines = (REPOSITORY / "envs/requirements.txt").read_text().splitlines()
    wanted = [Requirement(line.rstrip(" \\")) for line in lines if re.match("[a-z]", line)]
    here = {"python_full_version": f"{PYTHON}.0", "python_version": PYTHON}
    return {
        one.name: next(iter(one.specifier)).version
        for one in wanted
        if one.marker is None or one.marker.evaluate(here)
    }


def test_conda_has_the_versions_of_the_lock():
    there = locked()
    for name, version in environment().items():
        assert f"{there[name]}.".startswith(f"{version}."), name


def test_conda_has_all_that_the_rules_run_with():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *extras["mpi"], *extras["pipeline"], *extras["parquet"]]
    needed = {Requirement(line).name for line in asked} - {"lockstep"}
    assert needed <= set(environment())


def test_the_layout_is_the_standard_one():
    for name in ("LICENSE", "CITATION.cff", "config/README.md", "config/config.yaml"):
        assert (REPOSITORY / name).is_file()
    words = (REPOSITORY / "README.md").read_text().lower()
    assert "snakemake" in words and "workflow" in words  # by which the catalogue finds it
    assert (REPOSITORY / "workflow/Snakefile").is_file()
    # With one at the root as well, the catalogue lints that: it is the same workflow.
    assert 'include: "workflow/Snakefile"' in (REPOSITORY / "Snakefile").read_text()
    assert {path.suffix for path in (REPOSITORY / "workflow/rules").iterdir()} == {".smk"}


def test_the_catalogue_is_told_how_it_is_run():
    usage = yaml.safe_load((REPOSITORY / ".snakemake-workflow-catalog.yml").read_text())["usage"]
    assert usage == {"software-stack-deployment": {"conda": True}, "report": True}
    environments = set()
    for rules in (REPOSITORY / "workflow/rules").glob("*.smk"):
        text = rules.read_text()
        named = re.findall(r'^ +conda:\n +"(.+)"$', text, re.MULTILINE)
        assert len(named) == text.count("    shell:\n")  # else it would run in no environment
        environments |= {(rules.parent / name).resolve() for name in named}
    assert environments == {REPOSITORY / "envs/environment.yaml"}
