"""Where a result came from: the code, its versions, and the state of the repository."""

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lockstep.errors import UserError
from lockstep.files import sha256

PACKAGE = Path(__file__).parent

# What computes. Each counts by its version, torch by its build as well.
LIBRARIES = ("torch", "torchvision", "numpy")


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
    """Return one hash of all that `code` returns."""
    found = json.dumps(code(module, own_model), sort_keys=True)
    return hashlib.sha256(found.encode()).hexdigest()[:16]


def code(module: str, own_model: str = "") -> dict[str, str]:
    """Return the code that a stage runs: its module, and all of this package it imports.

    Comments, layout and docstrings do not count, so changing one reruns nothing. Nor does the list
    of what can be configured: what it changes of a result is in the flags of the stage.

    Args:
        module: a module of this package, such as "lockstep.pipeline.stages.train".
        own_model: the run's model; the module of a `package.module:function` counts as well, and
            what it imports from the working directory, from PYTHONPATH, and of installed packages.

    Returns:
        A hash for each file, by its path in the folder that it is imported from; for each installed
        package its version, and if the model is in it a hash of its files.

    Raises:
        UserError: a file is not Python.
    """
    files, packages = _walk([module, *_module_of(own_model)])
    for name in _module_of(own_model):
        top = name.partition(".")[0]
        for root in _roots(top):
            if top in packages:
                packages[top] = f"{packages[top]} {_content(root, top)}"
    return dict(sorted((dict(files.values()) | packages).items()))


def other_code(then: dict[str, str], now: dict[str, str]) -> str:
    """Return the names of what two results of `code` do not have alike, or nothing."""
    names = sorted(name for name in {*then, *now} if then.get(name) != now.get(name))
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _module_of(own_model: str) -> list[str]:
    return [own_model.partition(":")[0]] if ":" in own_model else []


def _walk(modules: list[str]) -> tuple[dict[Path, tuple[str, str]], dict[str, str]]:
    """Follow imports; return the name and the hash of each file, and the installed packages."""
    files: dict[Path, tuple[str, str]] = {}
    packages: dict[str, str] = {}
    waiting = [*modules]
    while waiting:
        name = waiting.pop()
        top = name.partition(".")[0]
        for root in _roots(top):
            if top != PACKAGE.name and _INSTALLED & {*root.parts}:
                packages[top] = _version(top) or _content(root, top)
                continue
            for path, package in _files(root, name.split(".")):
                if path in files or path == PACKAGE / "pipeline" / "config.py":
                    continue
                try:
                    digest, imports = _parse(path.read_bytes())
                except SyntaxError as error:
                    raise UserError(f"{path}: line {error.lineno}: {error.msg}") from None
                files[path] = path.relative_to(root).as_posix(), digest
                found = _absolute(imports, package)
                # What else this package imports need not be looked for.
                own = PACKAGE.name if top == PACKAGE.name else ""
                waiting += [name for name in found if own in ("", name.partition(".")[0])]
    return files, packages


_INSTALLED = {"site-packages", "dist-packages"}


def _roots(top: str) -> list[Path]:
    """Return the folders that hold what `import top` finds; none for what counts by its version.

    The working directory comes first, as it does when a model is imported.
    """
    if top == PACKAGE.name:
        return [PACKAGE.parent]
    if Path(top, "__init__.py").is_file() or Path(f"{top}.py").is_file():
        return [Path()]
    if top in (*sys.stdlib_module_names, *LIBRARIES):
        return []
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        spec = None
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if spec and spec.has_location and spec.origin:
        where = Path(spec.origin)
        return [where.parents[1] if folders else where.parent]
    # Packages without an __init__.py, of which there may be parts in several places.
    here = [Path()] if Path(top).is_dir() else []
    elsewhere = [Path(folder).parent for folder in folders if Path(folder).is_dir()]
    return here + [folder for folder in elsewhere if folder.resolve() != Path.cwd()]


def _files(root: Path, names: list[str]) -> Iterable[tuple[Path, list[str]]]:
    """Yield the files below `root` that importing a module runs, its own and its packages', each
    with the names of the package it is in."""
    for count in range(1, len(names) + 1):
        stem = root.joinpath(*names[:count])
        if (stem / "__init__.py").is_file():
            yield stem / "__init__.py", names[:count]
        elif stem.with_suffix(".py").is_file():
            yield stem.with_suffix(".py"), names[: count - 1]


@functools.cache
def _version(top: str) -> str:
    """Return the distribution that an installed package is of, and its version."""
    names = importlib.metadata.packages_distributions().get(top, [])
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in sorted(set(names)))


@functools.cache
def _content(root: Path, top: str) -> str:
    """Return a hash of the code of an installed package, comments and all: nobody edits these."""
    found = [root / f"{top}.py", *(root / top).rglob("*.py"), *(root / top).rglob("*.so")]
    hashes = {p.relative_to(root).as_posix(): sha256(p) for p in found if p.is_file()}
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()[:16]


Imports = list[tuple[int, str, list[str]]]
"""Of each import: how many packages up it begins, the module, the names that it takes from it."""


@functools.cache  # the runs of a table have most of their files in common
def _parse(source: bytes) -> tuple[str, Imports]:
    """Return a hash of a file but for comments, layout and docstrings, and what it imports."""
    tree = ast.parse(source)
    imports: Imports = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports += [(0, alias.name, []) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names]
            imports.append((node.level, node.module or "", names))
    text = ast.dump(_without_docstrings(tree))
    return hashlib.sha256(text.encode()).hexdigest()[:16], imports


def _absolute(imports: Imports, package: list[str]) -> Iterable[str]:
    """Yield the full names of imports in a module of a package: each may be of a module."""
    for level, module, names in imports:
        above = package[: len(package) - level + 1] if level else []
        stem = [*above, *filter(None, [module])]
        yield from (".".join([*stem, *name]) for name in ([[n] for n in names] or [[]]))


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
    found = {"python": platform.python_version()}
    for name in (*LIBRARIES, "pandas", "safetensors", "mpi4py", "snakemake"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_state(own_model: str = "") -> dict[str, Any] | None:
    """Return the commit of the workflow, whether files differ from it, and which of the run's own
    model it does not have; None outside of git."""

    def git(folder: str | Path, *words: str) -> str:
        command = ["git", "-C", os.fspath(folder), *words]
        done = subprocess.run(command, capture_output=True, check=True)
        return os.fsdecode(done.stdout)  # a file's name may be of any bytes

    try:
        top = Path(git(PACKAGE, "rev-parse", "--show-toplevel").removesuffix("\n"))
        commit = git(top, "rev-parse", "HEAD").strip()
        status = git(top, "status", "--porcelain", "--untracked-files=no")
        tracked = {top / name for name in git(top, "ls-files", "-z").split("\0")}
    except (OSError, subprocess.CalledProcessError):
        return None
    own = [path for path in _walk(_module_of(own_model))[0] if PACKAGE not in path.parents]
    untracked = sorted(str(path) for path in own if path.resolve() not in tracked)
    return {"commit": commit, "modified": bool(status.strip()), "untracked": untracked}
