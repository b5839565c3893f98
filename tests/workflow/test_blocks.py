"""The documents' commands, programs and configurations do what the documents say they do.

All pages share a folder, in which the tutorial comes first. Its results are what others mean by
`results/C/R`, and files that others take for granted are laid there.
"""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lockstep.pipeline.config import Config, Defaults, Run, RunRow, parse
from tests.blocks import PAGES, Block, blocks
from tests.conftest import REPOSITORY, environment

# What a reader of the library's page has: a module, and data that one can index.
MINE = """
import torch
from torch import nn


class GPT(nn.Sequential):
    def __init__(self, vocab):
        super().__init__(nn.Embedding(vocab, 16), nn.Linear(16, vocab))


class Corpus:
    tokens = torch.randint(256, (1024, 9), generator=torch.Generator().manual_seed(1))

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, ids):
        rows = self.tokens[ids]
        return rows[:, :-1], rows[:, 1:]


corpus = Corpus()
"""

# `make setup` is done, and what tests, measures or writes these documents is looked for alone.
SHELL = """
set -euo pipefail
make() {
    case "${1:-}" in
        run | setup | help) command make "$@" ;;
        *) command make --dry-run "$@" > /dev/null ;;
    esac
}
if test "$HOW" = "dry run"; then lockstep() { :; }; fi
"""
# Reports, and what `check` measures, are for test_digits.py.
SNAKEMAKE = """#!/bin/sh
test "$HOW" = "dry run" && exec {python} -m snakemake --quiet all --dry-run "$@"
exec {python} -m snakemake "$@" --omit-from check_world draw_runs_0 summarize
"""


class Reader:
    """Somebody who does what the pages say, in a folder with a copy of the workflow."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("Makefile", "pyproject.toml"):
            shutil.copy(REPOSITORY / name, folder)
        shutil.copytree(REPOSITORY / "examples", folder / "examples")
        python = folder / ".venv/bin"
        python.mkdir(parents=True)
        (python / "snakemake").write_text(SNAKEMAKE.format(python=shlex.quote(sys.executable)))
        (python / "snakemake").chmod(0o755)
        (python / "activate").touch()
        (python.parent / "ready").touch()
        (folder / "mine.py").write_text(MINE)
        self.done: set[tuple[str, str]] = set()

    def follow(self, page: Path) -> None:
        """Do what a page says, from top to bottom."""
        for block in blocks(page):
            if block.file:
                path = self.folder / block.file
                path.parent.mkdir(exist_ok=True)
                path.write_text(block.text)
            if block.how == "not run" or (block.language, block.text) in self.done:
                continue
            if block.language == "yaml":
                check_configuration(block)
            elif block.language == "tsv":
                check_table(block)
            elif block.language == "python" and not block.file:
                self.run(block, [sys.executable, "-c", block.text])
            elif block.language == "sh":
                self.run(block, ["bash", "-c", SHELL + block.text])
            self.done.add((block.language, block.text))

    def run(self, block: Block, words: list[str]) -> None:
        """Run a block's words, which must end with status 0."""
        env = environment() | {"HOW": block.how, "HOME": str(self.folder)}
        env["PATH"] = f"{self.folder / '.venv/bin'}{os.pathsep}{env['PATH']}"
        done = subprocess.run(
            words, cwd=self.folder, env=env, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"{block}: {done.stdout[-2000:]}{done.stderr[-4000:]}"


def check_configuration(block: Block) -> None:
    """Lay a configuration over the defaults, as Snakemake does."""
    values = yaml.safe_load((REPOSITORY / "config/config.yaml").read_text())
    for key, value in yaml.safe_load(block.text).items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    config = parse(Config, values, str(block))
    parse(Run, config.defaults.model_dump(), str(block))


def check_table(block: Block) -> None:
    """Look at each row of a table of runs."""
    lines = [line for line in block.text.splitlines() if not line.startswith("#")]
    names, *rows = (line.split("\t") for line in lines)
    for row in rows:
        cells = {key: cell for key, cell in zip(names, row, strict=True) if cell}
        parse(RunRow, {**Defaults().model_dump(), **cells}, str(block))


@pytest.fixture(scope="module")
def reader(make_workspace):
    reader = Reader(make_workspace("documents").folder)
    reader.follow(PAGES[0])
    folder = reader.folder
    # What the pages call things.
    (folder / "results/C").mkdir()
    (folder / "results/mine").mkdir()
    for name, run in {
        "C/R": "config/digits",
        "C/other": "shapes/one",
        "mine/flowers": "shapes/one",
    }.items():
        (folder / "results" / name).symlink_to(folder / "results" / run)
    (folder / "holiday").mkdir()
    shutil.copy(folder / "photos/circle/0.png", folder / "holiday/rose.jpg")
    return reader


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_a_page_can_be_followed(reader, page):
    if page != PAGES[0]:  # which has been
        reader.follow(page)
