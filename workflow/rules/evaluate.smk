rule evaluate_run:
    """Measure a run's last and averaged model on the test set, on its P ranks."""
    input:
        record=rules.train_run.output.record,
        last=rules.train_run.output.model,
        averaged=rules.average_run.output,
        manifest=rules.prepare.output.manifest,
        arrays=rules.prepare.output.arrays,
    output:
        **{table: f"<results>/{{run}}/{table}.csv" for table in TASK.tables},
        metrics="<results>/{run}/metrics.json",
    log:
        "<logs>/evaluate/{run}.log",
    benchmark:
        "<benchmarks>/evaluate/{run}.tsv"
    conda:
        "../../envs/environment.yaml"
    threads: cores
    resources:
        mpi=MPI,
        tasks=tasks,
        tasks_per_node=tasks_per_node,
        cpus_per_task=threads,
    params:
        flags=flags("ranks", "threads"),
        code=code_digest("lockstep.pipeline.stages.evaluate"),
        launch=start,
        data=subpath(input.manifest, parent=True),
        folder=subpath(output.metrics, parent=True),
    shell:
        "{params.launch} evaluate --results {params.folder:q} --data {params.data:q}"
        " {params.flags} > {log:q} 2>&1"


rule evaluate:
    """Every run's metrics, and what they are of: Snakemake makes nothing again that lies between."""
    input:
        expand(rules.train_run.output, run=RUNS),
        expand(rules.average_run.output, run=RUNS),
        expand(rules.evaluate_run.output, run=RUNS),
