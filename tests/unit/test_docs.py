"""The documents name what there is."""

import re

import pytest

from lockstep.pipeline.cli import make_parser
from lockstep.pipeline.config import Config, Dataset, Defaults
from tests.conftest import REPOSITORY

DOCUMENTS = [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("*/*.md")]


@pytest.mark.parametrize("model", [Config, Dataset, Defaults])
def test_every_key_is_explained_with_its_default(model):
    rows = {
        cells[1].strip(" `"): cells[2].strip(" `")
        for line in (REPOSITORY / "config/README.md").read_text().splitlines()
        if line.startswith("| `") and len(cells := line.split("|")) >= 5
    }
    for name, field in model.model_fields.items():
        if name in ("dataset", "defaults"):  # these have a section each
            continue
        default = field.default
        if default is None or field.default_factory:
            assert rows[name] == ""
        elif isinstance(default, str | bool):
            assert rows[name] == str(default).replace("True", "true").replace("False", "false")
        else:
            assert float(rows[name]) == default


def test_every_stage_is_in_the_readme():
    text = (REPOSITORY / "README.md").read_text()
    stages = next(a.choices for a in make_parser()._actions if a.dest == "stage")
    assert [name for name in stages if f"\n| `{name}` |" not in text] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)]+)\)", document.read_text()):
        if not target.startswith("http"):
            path, _, _ = target.partition("#")
            assert (document.parent / path).exists(), target
