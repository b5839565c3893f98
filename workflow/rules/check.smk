rule check_world:
    """Start ranks as `train` will, and stop with the cure where that would go wrong."""
    input:
        rules.prepare.output.manifest if DATASET.path else [],
    output:
        record="<results>/check/{world}.json",
        table="<results>/check/{world}.csv",
    log:
        "<logs>/check/{world}.log",
    benchmark:
        "<benchmarks>/check/{world}.tsv"
    # Before anything that takes long: a launch that cannot work is known at once.
    priority: 10
    # It says no for a reason that will be there the next time.
    retries: 0
    conda:
        "../../envs/environment.yaml"
    threads: cores
    resources:
        mpi=MPI,
        tasks=tasks,
        tasks_per_node=tasks_per_node,
        cpus_per_task=threads,
    params:
        flags=lambda wildcards: launch.check_flags(WORLDS[wildcards.world], EXPERIMENT),
        data=lambda wildcards, input: [f"--data={Path(path).parent}" for path in input],
        code=code_digest("lockstep.pipeline.stages.check"),
        launch=start,
    shell:
        "{params.launch} check {params.flags} {params.data:q} --output {output.record:q}"
        " > {log:q} 2>&1"


rule check:
    """Try every kind of launch that a run needs."""
    input:
        expand(rules.check_world.output, world=WORLDS),
