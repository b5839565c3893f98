rule partition:
    """Every partition that a run needs."""
    input:
        expand(f"{DATA}/partition/{{partition}}/shards.csv", partition=PARTITIONS),


rule partition_shards:
    """Assign every training sample to one of S shards."""
    input:
        rules.prepare.output.arrays,
    output:
        shards=f"{DATA}/partition/{{partition}}/shards.csv",
        summary=f"{DATA}/partition/{{partition}}/summary.csv",
    log:
        "<logs>/partition/{partition}.log",
    benchmark:
        "<benchmarks>/partition/{partition}.tsv"
    localrule: True
    conda:
        "../../envs/environment.yaml"
    params:
        flags=partition_flags,
        code=code_digest("lockstep.partition"),
        data=subpath(input[0], ancestor=2),
        folder=subpath(output.shards, parent=True),
    shell:
        "python -m lockstep partition --data {params.data:q} {params.flags}"
        " --output {params.folder:q} > {log:q} 2>&1"
