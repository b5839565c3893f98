"""What is private in torch may go with any release: one folder imports it."""

import ast
from pathlib import Path

import lockstep

ROOT = Path(lockstep.__file__).parent


def private_imports(path: Path) -> list[str]:
    """Return what a file imports from torch under a name that begins with an underscore."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return [name for name in found if name.startswith("torch.") and "._" in name]


def test_one_folder_imports_what_is_private_in_torch():
    files = {path: private_imports(path) for path in ROOT.rglob("*.py")}
    inside = [names for path, names in files.items() if path.parent.name == "torch_private"]
    assert any(inside)
    others = {
        str(path): names for path, names in files.items() if path.parent.name != "torch_private"
    }
    assert {path: names for path, names in others.items() if names} == {}
