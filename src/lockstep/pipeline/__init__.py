"""The Snakemake pipeline on the library: its stages, its configuration, its records."""

from pathlib import Path

# The workflow, beside the package in the repository: what a Snakefile of another folder includes.
SNAKEFILE = str(Path(__file__).parents[3] / "workflow" / "Snakefile")
