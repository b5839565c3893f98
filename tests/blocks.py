"""The blocks of the documents: what can be run, and the reason where something is not."""

import re
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

from tests.conftest import REPOSITORY

PAGES = [
    REPOSITORY / "docs/tutorial.md",  # first: the others use its results
    *(REPOSITORY / name for name in ("README.md", "config/README.md", "CONTRIBUTING.md")),
    *sorted(REPOSITORY.glob("docs/[a-su-z]*.md")),
]

# A comment before a block, which no reader sees: `not run: wants a GPU`, or `dry run: takes hours`,
# in which Snakemake says what it would do, and so does make.
MARK = re.compile(r"<!-- (not run|dry run): (.+) -->\s*")


@dataclass(frozen=True)
class Block:
    """A block of a page.

    Attributes:
        language: what stands behind its fence; none where it is indented.
        how: `run`, `dry run`, `not run`.
        why: the reason, where it is not run.
    """

    page: Path
    line: int
    language: str
    text: str
    how: str = "run"
    why: str = ""

    @property
    def file(self) -> str | None:
        """The file that the block is, where its first line is a comment that names one."""
        named = re.match(r"# ([\w/.-]+\.(?:py|yaml|tsv))\n", self.text)
        return named[1] if named else None

    def __str__(self) -> str:
        return f"{self.page.relative_to(REPOSITORY)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """Return the blocks of a page."""
    found, before = [], None
    for token in MarkdownIt("commonmark").enable("table").parse(page.read_text()):
        if token.type in ("fence", "code_block"):
            mark = (
                MARK.fullmatch(before.content) if before and before.type == "html_block" else None
            )
            assert token.map is not None
            more = (mark[1], mark[2]) if mark else ()
            found.append(Block(page, token.map[0] + 1, token.info, token.content, *more))
        before = token
    return found
