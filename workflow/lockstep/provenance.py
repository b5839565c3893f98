"""Where a result came from: the code, its versions, and the state of the repository."""

import ast
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lockstep.config import Run
from lockstep.errors import UserError, first_line

PACKAGE = Path(__file__).parent

# Set by a user, these choose other kernels, and with them other bits.
CAPS = (
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "DNNL_DEFAULT_FPMATH_MODE",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "NVIDIA_TF32_OVERRIDE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
)


def caps() -> dict[str, str]:
    """Return what the environment says about kernels: instruction sets and shortened numbers."""
    return {name: os.environ[name] for name in CAPS if name in os.environ}


def code_digest(module: str, own_model: str = "") -> str:
    """Return a hash of the code that a stage runs: its module, and all of this package it imports.

    Comments, layout and docstrings do not count, so changing one reruns nothing. Nor does the list
    of what can be configured: what it changes of a result is in the flags of the stage.

    Args:
        module: a module of this package, such as "lockstep.train".
        own_model: the run's model; the module of a `package.module:function` in the working
            directory counts as well, and what it imports from there.
    """
    trees: dict[Path, ast.Module] = {}
    waiting = [module]
    if ":" in own_model:
        waiting.append(own_model.partition(":")[0])
    while waiting:
        for path, package in _files(waiting.pop()):
            if path not in trees and path != PACKAGE / "config.py":
                try:
                    trees[path] = ast.parse(path.read_bytes())
                except SyntaxError as error:
                    raise UserError(f"{path}: line {error.lineno}: {error.msg}") from None
                waiting += _imports(trees[path], package)
    digest = hashlib.sha256()
    for path in sorted(trees):
        digest.update(ast.dump(_without_docstrings(trees[path])).encode())
    return digest.hexdigest()[:16]


def _files(module: str) -> Iterable[tuple[Path, list[str]]]:
    """Yield the files that importing `module` runs, its own and its packages', each with the names
    of the package it is in: of this package, and of what lies in the working directory."""
    names = module.split(".")
    root = PACKAGE.parent if names[0] == PACKAGE.name else Path()
    for count in range(1, len(names) + 1):
        stem = root.joinpath(*names[:count])
        if (stem / "__init__.py").is_file():
            yield stem / "__init__.py", names[:count]
        elif stem.with_suffix(".py").is_file():
            yield stem.with_suffix(".py"), names[: count - 1]


def _imports(tree: ast.Module, package: list[str]) -> Iterable[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            parts = [*above, *filter(None, [node.module])]
            yield from (".".join([*parts, alias.name]) for alias in node.names)


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [  # type: ignore[attr-defined]
                line
                for line in body
                if not (isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant))
            ]
    return tree


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a result depends on."""
    names = ("torch", "torchvision", "numpy", "pandas", "safetensors", "mpi4py", "snakemake")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_state() -> dict[str, Any] | None:
    """Return the commit of the workflow and whether files differ from it; None outside of git."""
    git = ["git", "-C", os.fspath(PACKAGE)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
        status = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True
        )
    except OSError:
        return None
    if commit.returncode or status.returncode:
        return None
    return {"commit": commit.stdout.strip(), "modified": bool(status.stdout.strip())}


def read_run(results: Path) -> Run:
    """Return the configuration of a trained run from its train.json.

    Raises:
        UserError: it is missing or damaged.
    """
    return read_record(results)[0]


def read_record(results: Path) -> tuple[Run, dict[str, Any]]:
    """Return the configuration of a trained run, and all else that its train.json says.

    Raises:
        UserError: it is missing or damaged.
    """
    path = results / "train.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return Run(**record["configuration"]), record
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = first_line(error)
        raise UserError(f"{path}: not the record of a run ({why}); train again") from None
