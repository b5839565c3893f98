"""The workflow lies in workflow/, where Snakemake's catalogue and other workflows look for it."""


include: "workflow/Snakefile"


rule all:
    """Everything: what is named here is made again if somebody removes it."""
    input:
        rules.prepare.output,
        rules.partition.input,
        rules.train.input,
        rules.average.input,
        rules.evaluate.input,
        rules.summarize.output,
        rules.figures.input,
        rules.report.output,
        rules.page.output,
