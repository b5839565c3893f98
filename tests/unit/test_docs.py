"""The documents name what there is; tests/workflow/test_blocks.py does what they say to do."""

import ast
import importlib
import json
import re
import shlex
import subprocess
import tomllib
import typing

import pytest

from docs.reference import PAGES as WRITTEN
from lockstep.__main__ import OF_THE_LIBRARY
from lockstep.pipeline.cli import make_parser
from lockstep.pipeline.config import Config, Dataset, Defaults
from tests.blocks import PAGES, blocks
from tests.conftest import REPOSITORY

DOCUMENTS = [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("[cd]*/*.md")]
BLOCKS = [block for page in PAGES for block in blocks(page)]

# What a program says, a drawing, a file that is not a command's: nothing in them runs.
COMMANDS = {"docker", "export", "lockstep", "make", "mpirun", "pip", "python"}
COMMANDS |= {"snakemake", "srun", "torchrun"}


def rows_of_the_configuration():
    """Return what config/README.md says of each key: its default, and what it means."""
    lines = (REPOSITORY / "config/README.md").read_text().splitlines()
    rows = [re.split(r" *\| *", line)[1:-1] for line in lines if line.startswith("| `")]
    return {row[0].strip("`"): (row[1].strip("`"), row[2]) for row in rows}


@pytest.mark.parametrize("model", [Config, Dataset, Defaults])
def test_every_key_is_explained_with_its_default_and_its_choices(model):
    rows = rows_of_the_configuration()
    for name, field in model.model_fields.items():
        if name in ("dataset", "defaults"):  # these have a section each
            continue
        shown, meaning = rows[name]
        default = field.default
        if default is None or field.default_factory:
            assert shown == ""
        elif isinstance(default, str | bool):
            assert shown == str(default).replace("True", "true").replace("False", "false")
        else:
            assert float(shown) == default
        if typing.get_origin(field.annotation) is typing.Literal:
            missing = [c for c in typing.get_args(field.annotation) if f"`{c}`" not in meaning]
            assert [c for c in missing if c not in (default, "none")] == [], name


def test_no_key_is_explained_that_there_is_not():
    known = {*Config.model_fields, *Dataset.model_fields, *Defaults.model_fields}
    assert set(rows_of_the_configuration()) <= known


def test_every_stage_is_in_the_readme():
    text = (REPOSITORY / "README.md").read_text()
    stages = next(a.choices for a in make_parser()._actions if a.dest == "stage")
    assert [name for name in stages if f"\n| `{name}` |" not in text] == []


def anchors_of(document):
    """Return the anchors of a page's headings, as Git hosts and the site make them."""
    text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)]+)\)", document.read_text()):
        if not target.startswith("http"):
            path, _, anchor = target.partition("#")
            there = document.parent / path if path else document
            assert there.is_file(), target  # a site shows no folder
            assert not anchor or anchor in anchors_of(there), target


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_written_from_the_source_is_current(name):
    there = (REPOSITORY / "docs" / name).read_text()
    assert there == WRITTEN[name](), "run `make reference`"


def test_every_page_is_in_the_lists_of_pages():
    pages = {path.relative_to(REPOSITORY).as_posix() for path in REPOSITORY.glob("docs/*.md")}
    pages -= {"docs/README.md"}
    listed = json.dumps(tomllib.loads((REPOSITORY / "zensical.toml").read_text())["project"]["nav"])
    text = (REPOSITORY / "docs/README.md").read_text()
    assert [page for page in pages if f'"{page}"' not in listed] == []
    assert [page for page in pages if f"({page.removeprefix('docs/')})" not in text] == []
    assert all((REPOSITORY / page).exists() for page in re.findall(r'"([\w/-]+\.md)"', listed))


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_every_block_says_what_it_is(block):
    """One in a language that nothing runs has a comment before it that says why."""
    assert block.language in ("diff", "python", "sh", "text", "tsv", "yaml")
    if block.language == "text" and block.page.name not in WRITTEN:
        lines = [line for line in block.text.splitlines() if not re.match(r"lockstep \w+:", line)]
        firsts = {line.split()[0] for line in lines if line.strip()}
        assert not firsts & COMMANDS, "a command; make it ```sh"
    if block.language == "diff":
        assert block.how == "not run"
    if block.language == "python":
        ast.parse(block.text)
    if block.language == "sh":
        subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)


def test_commands_in_the_documents_are_those_of_the_command_line():
    """Also where a block is not run, and in the text."""
    stages = make_parser()
    names = {*OF_THE_LIBRARY, *next(a.choices for a in stages._actions if a.dest == "stage")}
    for document in DOCUMENTS:
        for name in re.findall(r"`lockstep ([a-z]\w*)", document.read_text()):
            assert name in names, (document, name)
    for block in BLOCKS:
        if block.language == "sh":
            for line in block.text.replace("exec ", "").splitlines():
                words = shlex.split(line.partition(" || ")[0].partition(" > ")[0], comments=True)
                if words[:1] == ["lockstep"] and "--help" not in words:
                    if module := OF_THE_LIBRARY.get(words[1]):
                        parser = importlib.import_module(module).make_parser(words[1])
                        given, _ = parser.parse_known_args(words[2:])
                        words = ["lockstep", *getattr(given, "words", ["config", "x"])]
                    if not words[1].endswith(".py"):
                        stages.parse_args([word for word in words[1:] if word != "…"])


def test_the_port_from_ddp_is_that_of_the_examples():
    (block,) = (block for block in BLOCKS if block.language == "diff")
    for sign, name in (("-", "ddp_before.py"), ("+", "ddp_after.py")):
        lines = [line[1:] for line in block.text.splitlines() if line.startswith(sign)]
        there = (REPOSITORY / "examples" / name).read_text().splitlines()
        assert [line for line in lines if line not in there] == []
