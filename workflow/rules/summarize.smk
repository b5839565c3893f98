rule summarize:
    """One table of all runs."""
    input:
        records=expand("<results>/{run}/train.json", run=RUNS),
        metrics=expand(rules.evaluate_run.output, run=RUNS),
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
        folders=lambda wildcards, input: [
            os.path.dirname(path) for path in input.records
        ],
    shell:
        "python -m lockstep summarize {params.folders:q} --output {output.table:q} > {log:q} 2>&1"
