"""Snakemake's catalogue lints the default configuration, with nothing but Snakemake installed."""

import subprocess
import sys

from tests.conftest import environment

# What conda's snakemake does not bring. A name in sys.modules that is None is not to be had.
ABSENT = ["torch", "torchvision", "sklearn", "scipy", "matplotlib", "mpi4py", "pooch", "tqdm"]
ABSENT += ["safetensors", "PIL", "pyarrow", "onnx"]


def test_the_default_configuration_is_clean_where_snakemake_alone_is_installed(workspace):
    bare = workspace.write(
        "bare/sitecustomize.py", f"import sys\nsys.modules |= dict.fromkeys({ABSENT})\n"
    )
    found = environment()
    found["PYTHONPATH"] = str(bare.parent)  # without Lockstep: it is beside the workflow
    words = [sys.executable, "-m", "snakemake", "--lint"]
    done = subprocess.run(words, cwd=workspace.folder, env=found, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "in a good condition" in done.stderr
    # It is the linter that says so: a rule without a log and an environment is told of.
    rules = workspace.folder / "workflow/rules/summarize.smk"
    rules.write_text(rules.read_text() + 'rule other:\n    shell: "echo"\n')
    done = subprocess.run(words, cwd=workspace.folder, env=found, capture_output=True, text=True)
    assert done.returncode == 1 and "No log directive defined" in done.stderr
