rule average_run:
    """Average the last snapshots of a run."""
    input:
        record=rules.train_run.output.record,
        weights=rules.train_run.output.model,
        snapshots=rules.train_run.output.snapshots,
        manifest=rules.prepare.output.manifest,
    output:
        model="<results>/{run}/averaged.safetensors",
        record="<results>/{run}/averaged.json",
    log:
        "<logs>/average/{run}.log",
    benchmark:
        "<benchmarks>/average/{run}.tsv"
    conda:
        "../../envs/environment.yaml"
    threads: threads
    params:
        flags=flags("threads"),
        code=code_digest("lockstep.pipeline.stages.average"),
        data=subpath(input.manifest, parent=True),
        folder=subpath(output.record, parent=True),
    shell:
        "python -m lockstep average --results {params.folder:q} --data {params.data:q}"
        " {params.flags} > {log:q} 2>&1"


rule average:
    """Every run's averaged model, and what it is of."""
    input:
        expand(rules.train_run.output, run=RUNS),
        expand(rules.average_run.output, run=RUNS),
