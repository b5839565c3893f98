rule partition_shards:
    """Assign every training sample to one of S shards."""
    input:
        rules.prepare.output.arrays,
        manifest=rules.prepare.output.manifest,
    output:
        shards=f"{DATA}/partition/{{partition}}/shards.csv",
        summary=f"{DATA}/partition/{{partition}}/summary.csv",
        record=f"{DATA}/partition/{{partition}}/partition.json",
    log:
        f"<logs>/partition/{DATASET.id}-{{partition}}.log",
    benchmark:
        f"<benchmarks>/partition/{DATASET.id}-{{partition}}.tsv"
    localrule: True
    conda:
        "../../envs/environment.yaml"
    params:
        flags=lambda wildcards: launch.flags(
            PARTITIONS[wildcards.partition], "shards", "scheme", "alpha", "seed"
        ),
        code=code_digest("lockstep.pipeline.stages.partition"),
        data=subpath(input.manifest, parent=True),
        folder=subpath(output.shards, parent=True),
    shell:
        "python -m lockstep partition --data {params.data:q} {params.flags}"
        " --output {params.folder:q} > {log:q} 2>&1"


rule partition:
    """Every partition that a run needs."""
    input:
        expand(rules.partition_shards.output, partition=PARTITIONS),
