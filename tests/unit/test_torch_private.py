"""What is private in torch may go with any release: one folder imports it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lockstep
from lockstep.pipeline.stages.partition import partition
from lockstep.torch_private import without_compiler

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


def test_training_and_evaluating_do_not_load_torchs_compiler(digits, tmp_path):
    partition(digits, shards=4, scheme="stratified", alpha=0.5, seed=0, output=tmp_path / "4")
    words = ["--data", digits, "--partition", tmp_path / "4/shards.csv"]
    words += ["--shards=4", "--epochs=1", "--ranks=1"]
    train = ["train", *words, "--output", tmp_path]
    for stage in (
        train,
        ["average", "--results", tmp_path, "--data", digits],
        ["evaluate", "--results", tmp_path, "--data", digits],
    ):
        code = f"""
import sys
from lockstep.pipeline import cli
sys.argv[1:] = {[*map(str, stage)]}
cli.main()
print([name for name in ("torch._dynamo", "torchvision", "sklearn") if name in sys.modules])
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == "[]"


def test_determinism_is_what_torch_says_it_is_and_what_its_compiler_reads(monkeypatch):
    code = """
import torch
from lockstep.torch_private import set_deterministic
for strict, warns in ((True, False), (True, True), (False, False)):
    set_deterministic(strict, warns)
    assert torch.are_deterministic_algorithms_enabled() is strict
    assert torch.is_deterministic_algorithms_warn_only_enabled() is warns
set_deterministic(True)
from torch._inductor import config
assert config.deterministic
set_deterministic(False)
assert not config.deterministic and not torch.are_deterministic_algorithms_enabled()
"""
    monkeypatch.delenv("TORCHINDUCTOR_DETERMINISTIC", raising=False)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_an_optimizer_without_the_compiler_takes_the_same_steps(kind):
    def states(kind):
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        more = {"momentum": 0.9} if kind.__name__ == "SGD" else {}
        optimizer = kind(model.parameters(), lr=0.1, fused=True, **more)
        optimizer.register_step_post_hook(lambda *_: seen.append(kind.__name__))
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(4, 3)).square().sum().backward()
            optimizer.step()
        return model.state_dict(), optimizer.state_dict()

    seen: list[str] = []
    torch.testing.assert_close(states(without_compiler(kind)), states(kind), rtol=0, atol=0)
    assert seen == [kind.__name__] * 6
