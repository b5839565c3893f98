"""The Snakemake pipeline on the library: its stages, its configuration, its records."""
