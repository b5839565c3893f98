rule train_run:
    """Train a model on P ranks."""
    input:
        manifest=rules.prepare.output.manifest,
        arrays=rules.prepare.output.arrays,
        shards=partition_of_run("shards.csv"),
        weights=lambda wildcards: map(local, launch.weights(RUNS[wildcards.run])),
    output:
        model="<results>/{run}/model.safetensors",
        snapshots=directory("<results>/{run}/snapshots"),
        history="<results>/{run}/history.csv",
        record="<results>/{run}/train.json",
    log:
        "<logs>/train/{run}.log",
    benchmark:
        "<benchmarks>/train/{run}.tsv"
    conda:
        "../../envs/environment.yaml"
    threads: cores
    resources:
        mpi=MPI,
        tasks=tasks,
        tasks_per_node=tasks_per_node,
        cpus_per_task=threads,
    params:
        flags=lambda wildcards: launch.train_flags(RUNS[wildcards.run]),
        # With `input` it is not recorded: it changes nothing of a result.
        upkeep=lambda wildcards, input: launch.upkeep_flags(RUNS[wildcards.run]),
        code=train_code,
        launch=start,
        data=subpath(input.manifest, parent=True),
        folder=subpath(output.record, parent=True),
    shell:
        "{params.launch} train --data {params.data:q} --partition {input.shards:q}"
        " {params.flags} {params.upkeep} --output {params.folder:q} > {log:q} 2>&1"


rule train:
    """Every run's model, and the launches they need tried."""
    input:
        rules.check.input,
        expand(rules.train_run.output, run=RUNS),
