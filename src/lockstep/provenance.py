"""Where a result came from: the code, its versions, and the state of the repository."""

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lockstep.errors import UserError
from lockstep.files import json_sha256, sha256

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


# The files of this package that decide the bits of a training. What is not here (launching, saving,
# measuring, reporting) may be edited, and a run goes on from its checkpoints all the same.
LIBRARY = (
    *("determinism.py", "metrics.py", "optimizer.py", "random.py", "sampler.py"),
    *("reduce/**/*.py", "torch_private/**/*.py"),
)
# Those of a loop of one's own.
LOOP = ("gradients.py", "step.py")
# Those of the pipeline. What `config.py` makes of a configuration is recorded as values.
PIPELINE = (
    *("pipeline/optim.py", "pipeline/stages/train.py"),
    *("pipeline/data/arrays.py", "pipeline/data/batches.py", "pipeline/data/shards.py"),
    "pipeline/data/augment.py",
    *("pipeline/models/**/*.py", "pipeline/tasks/**/*.py"),
)
# Of strategies, the file of the run's own counts, and what that imports from its neighbours.
STRATEGIES = "strategies"


def code_digest(module: str) -> str:
    """Return one hash of all that `code_of_stage` returns."""
    return json_sha256(code_of_stage(module))[:16]


def preparing_digest(own: str = "") -> str:
    """Return one hash of the code of `prepare` and of a `package.module:function` of the user's."""
    return json_sha256(code_of_stage("lockstep.pipeline.stages.prepare") | _code_of_model(own))[:16]


def training_digest(strategy: str, own_model: str = "") -> str:
    """Return one hash of all that `code_of_training` returns."""
    return json_sha256(code_of_training(strategy, own_model))[:16]


def code_of_stage(module: str) -> dict[str, str]:
    """Return the code that a stage runs: its module, and all of this package it imports.

    Comments, layout, docstrings and the texts of errors do not count, so changing one reruns
    nothing. Nor does the list of what can be configured: what it changes of a result is in the
    flags of the stage.

    Args:
        module: a module of this package, such as "lockstep.pipeline.stages.evaluate".

    Returns:
        A hash for each file, by its path in the folder that it is imported from.

    Raises:
        UserError: a file is not Python.
    """
    files, _ = _walk([module], stage=True)
    return dict(sorted(files.values()))


def code_of_training(strategy: str, own_model: str = "") -> dict[str, str]:
    """Return the code that decides the bits of one of the pipeline's trainings, and no other.

    Args:
        strategy: the run's strategy.
        own_model: the run's model; the module of a `package.module:function` counts as well, and
            what it imports from the working directory, from PYTHONPATH, and of installed packages.

    Returns:
        A hash for each file, by its path in the folder that it is imported from; for each installed
        package its version, and if the model is in it a hash of its files.

    Raises:
        UserError: a file is not Python.
    """
    found = _code_of_package((*LIBRARY, *PIPELINE), strategy) | _code_of_model(own_model)
    return dict(sorted(found.items()))


def code_of_script(script: Path) -> dict[str, str]:
    """Return the code that decides the bits of a training in a script of the user's own.

    Args:
        script: its file; what it imports counts as that of a model does in `code_of_training`, and
            the script's folder is looked through first.

    Returns:
        As `code_of_training`.

    Raises:
        UserError: a file is not Python.
    """
    folder, package = script.parent, list[str]()
    while (folder / "__init__.py").is_file():  # it was started by `python -m`
        package.insert(0, folder.name)
        folder = folder.parent
    digest, imports = _parse_file(script)
    files, packages = _walk(_absolute(imports, package), (script.parent, folder))
    found = _code_of_package((*LIBRARY, *LOOP), "own_loop") | dict(files.values()) | packages
    return dict(sorted((found | {script.name: digest}).items()))


def _code_of_package(patterns: Iterable[str], strategy: str) -> dict[str, str]:
    paths = {path for pattern in patterns for path in PACKAGE.glob(pattern)}
    waiting = ["sync_sgd" if strategy == "single" else strategy]  # the tree, over one rank
    room = [PACKAGE.name, STRATEGIES]
    while waiting:
        path = PACKAGE / STRATEGIES / f"{waiting.pop()}.py"
        if path not in paths and path.is_file():
            paths.add(path)
            # Not the room's own file: which strategies there are decides nothing of any.
            names = (name.split(".") for name in _absolute(_parse_file(path)[1], room))
            waiting += [name[2] for name in names if name[:2] == room and len(name) > 2]
    return {path.relative_to(PACKAGE.parent).as_posix(): _parse_file(path)[0] for path in paths}


def _code_of_model(own_model: str) -> dict[str, str]:
    modules = _module_of(own_model)
    files, packages = _walk(modules)
    for top in {name.partition(".")[0] for name in modules} & packages.keys():
        for root in _roots(top):
            packages[top] = f"{packages[top]} {_content(root, top)}"
    return dict(files.values()) | packages


def other_code(then: dict[str, str], now: dict[str, str]) -> str:
    """Return the names of what two results of `code` do not have alike, or nothing."""
    names = sorted(name for name in {*then, *now} if then.get(name) != now.get(name))
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def differences(then: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return what nested dictionaries do not have alike, then and now, by its innermost name.

    `code` is left out: of files there are many, and a hash says nothing; see `other_code`.
    """
    found: dict[str, tuple[Any, Any]] = {}
    for key in sorted({*then, *now} - {"code"}):
        old, new = then.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found |= differences(old, new)
        elif old != new:
            found[key] = old, new
    return found


def _module_of(own_model: str) -> list[str]:
    return [own_model.partition(":")[0]] if ":" in own_model else []


HERE = (Path(),)


def _walk(
    modules: Iterable[str], here: Sequence[Path] = HERE, stage: bool = False
) -> tuple[dict[Path, tuple[str, str]], dict[str, str]]:
    """Follow imports; return the name and the hash of each file, and the installed packages.

    Args:
        modules: where to begin.
        here: the folders that are looked through first.
        stage: follow what is of this package, and nothing else; or else, nothing that is.
    """
    files: dict[Path, tuple[str, str]] = {}
    packages: dict[str, str] = {}
    waiting = [*modules]
    while waiting:
        name = waiting.pop()
        top = name.partition(".")[0]
        if (top == PACKAGE.name) != stage:
            continue
        for root in [PACKAGE.parent] if stage else _roots(top, here):
            if not stage and _INSTALLED & {*root.parts}:
                packages[top] = _version(top) or _content(root, top)
                continue
            for path, package in _files(root, name.split(".")):
                if path not in files and path != PACKAGE / "pipeline" / "config.py":
                    digest, imports = _parse_file(path, types=not stage)
                    files[path] = path.relative_to(root).as_posix(), digest
                    waiting += _absolute(imports, package)
    return files, packages


_INSTALLED = {"site-packages", "dist-packages"}


def _roots(top: str, here: Sequence[Path] = HERE) -> list[Path]:
    """Return the folders that hold what `import top` finds; none for what counts by its version.

    The folders `here` come first, as the working directory does when a model is imported.
    """
    for folder in here:
        if (folder / top / "__init__.py").is_file() or (folder / f"{top}.py").is_file():
            return [folder]
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
    near = [folder for folder in here if (folder / top).is_dir()]
    known = {folder.resolve() for folder in near}
    elsewhere = [Path(folder).parent for folder in folders if Path(folder).is_dir()]
    return near + [folder for folder in elsewhere if folder.resolve() not in known]


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
    return json_sha256(hashes)[:16]


Imports = list[tuple[int, str, list[str]]]
"""Of each import: how many packages up it begins, the module, the names that it takes from it."""


def _parse_file(path: Path, types: bool = True) -> tuple[str, Imports]:
    try:
        return _parse(path.read_bytes(), types)
    except SyntaxError as error:
        raise UserError(f"{path}: line {error.lineno}: {error.msg}") from None


@functools.cache  # the runs of a table have most of their files in common
def _parse(source: bytes, types: bool) -> tuple[str, Imports]:
    """Return a hash of what a file does, and what it imports.

    Comments, layout, docstrings and the texts of errors and of `say` do nothing, and nor does what
    is under TYPE_CHECKING. Without `types`, nor do imports that only functions' annotations name:
    in the user's own files, another might import such a name from there.
    """
    tree = ast.parse(source)
    _drop_what_does_nothing(tree)
    imports: Imports = []
    typed = set() if types else _only_in_annotations(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports += [(0, alias.name, []) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [a.name for a in node.names if (a.asname or a.name) not in typed]
            if names:
                imports.append((node.level, node.module or "", names))
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16], imports


_TYPE_CHECKING = ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def _drop_what_does_nothing(tree: ast.Module) -> None:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(node, ast.If) and ast.unparse(node.test) in _TYPE_CHECKING:
            node.body = []
        elif isinstance(body, list):
            node.body = [  # type: ignore[attr-defined]
                line
                for line in body
                if not (isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant))
            ]
    says = any(
        isinstance(node, ast.ImportFrom) and node.module == "lockstep.errors"
        for node in ast.walk(tree)
    )
    for node in ast.walk(tree):
        speaks = says and isinstance(node, ast.Call) and ast.unparse(node.func) == "say"
        if speaks or isinstance(node, ast.Raise):
            _Silence().visit(node)


class _Silence(ast.NodeTransformer):
    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        return ast.Constant("") if isinstance(node.value, str) else node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.Constant:
        return ast.Constant("")


def _only_in_annotations(tree: ast.Module) -> set[str]:
    """Return the names that functions' annotations use, and nothing else does."""
    names = {node for node in ast.walk(tree) if isinstance(node, ast.Name)}
    typing: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.arg):
            found = node.annotation if isinstance(node, ast.arg) else node.returns
            typing |= {*ast.walk(found)} if found else set()
    return {node.id for node in names & typing} - {node.id for node in names - typing}


def _absolute(imports: Imports, package: list[str]) -> Iterable[str]:
    """Yield the full names of imports in a module of a package: each may be of a module."""
    for level, module, names in imports:
        above = package[: len(package) - level + 1] if level else []
        stem = [*above, *filter(None, [module])]
        yield from (".".join([*stem, *name]) for name in ([[n] for n in names] or [[]]))


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
    own = _walk(_module_of(own_model))[0]
    untracked = sorted(str(path) for path in own if path.resolve() not in tracked)
    return {"commit": commit, "modified": bool(status.strip()), "untracked": untracked}
