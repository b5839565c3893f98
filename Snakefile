"""The workflow lies in workflow/, where Snakemake's catalogue and other workflows look for it."""


include: "workflow/Snakefile"


rule all:
    """The report, and so everything."""
    input:
        rules.report.output,
