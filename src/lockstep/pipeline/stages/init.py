"""init: write a small project to begin with, which runs at once."""

import os
import re
import shutil
import tempfile
from pathlib import Path

from lockstep.errors import UserError
from lockstep.pipeline import SNAKEFILE

# The project, file for file.
PROJECT = Path(__file__).parents[1] / "project"


def init(name: str) -> Path:
    """Write a project into a new folder of the working directory, and return the folder.

    Args:
        name: the folder's.

    Raises:
        UserError: it is no name of a folder, there is something of that name, or the package was
            installed without the workflow.
    """
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise UserError(
            f"{name!r}: expected the name of a folder, of letters, digits, '_', '.' and '-'"
        )
    if os.path.lexists(name):
        raise UserError(f"{name}: is there already; take another name, or move it away")
    if not Path(SNAKEFILE).exists():
        raise UserError(
            f"{SNAKEFILE}: No such file; the workflow is in Lockstep's repository: "
            f"clone it, and pip install --editable it"
        )
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=".") as folder:
        draft = Path(folder, name)
        for path in sorted(PROJECT.rglob("*")):
            if path.is_file() and path.parent.name != "__pycache__":
                copy = draft / path.relative_to(PROJECT)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)  # not its permissions: those of an installation
        return draft.rename(name)
