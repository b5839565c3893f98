rule summarize:
    """One table of all runs."""
    input:
        # Without names: to find a file in a list that has one, Snakemake reads the whole of it.
        expand("<results>/{run}/train.json", run=RUNS),
        expand(rules.evaluate_run.output, run=RUNS),
    output:
        table="<results>/summary.csv",
        groups="<results>/groups.csv",
    log:
        "<logs>/summarize.log",
    benchmark:
        "<benchmarks>/summarize.tsv"
    localrule: True
    conda:
        "../../envs/environment.yaml"
    params:
        code=code_digest("lockstep.pipeline.stages.summarize"),
        folders=lambda wildcards, output: [
            os.path.join(os.path.dirname(output.table), run) for run in RUNS
        ],
    shell:
        "python -m lockstep summarize {params.folders:q} --output {output.table:q} > {log:q} 2>&1"
