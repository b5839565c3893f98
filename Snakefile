"""The workflow lies in workflow/, where Snakemake's catalogue and other workflows look for it."""


include: "workflow/Snakefile"


rule default:
    """Everything. What a Snakefile includes cannot say what its target is."""
    input:
        rules.all.input,
