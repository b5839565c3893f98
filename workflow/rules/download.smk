rule download:
    """Fetch the dataset's files and check their SHA-256; describe them, or the user's own files."""
    input:
        # From a function: whatever characters it is made of, none is a wildcard. And `local`: a
        # module's prefix is for what the workflow makes.
        lambda wildcards: (
            [local(DATASET.path)]
            if DATASET.path and DATASET.name != "function"
            else []
        ),
    output:
        # The files themselves are not declared: Snakemake would remove them before it runs this
        # again, and what is there and whole need not be fetched twice.
        f"{DATA}/sources.json",
    log:
        f"<logs>/download/{DATASET.id}.log",
    benchmark:
        f"<benchmarks>/download/{DATASET.id}.tsv"
    localrule: True
    conda:
        "../../envs/environment.yaml"
    params:
        flags=launch.flags(DATASET, "name", "path"),
        # With `input` it is not recorded: another mirror has the same files.
        mirror=lambda wildcards, input: launch.flags(DATASET, "mirror"),
        code=code_digest("lockstep.pipeline.stages.download"),
        folder=subpath(output[0], parent=True),
    shell:
        "python -m lockstep download {params.flags} {params.mirror} --output {params.folder:q}"
        " > {log:q} 2>&1"


rule fetch_weights:
    """Fetch weights of torchvision's that runs begin with; nodes that train need no internet."""
    output:
        local("data/weights/{model}-{weights}.pth"),
    log:
        "<logs>/weights/{model}-{weights}.log",
    benchmark:
        "<benchmarks>/weights/{model}-{weights}.tsv"
    wildcard_constraints:
        model=r"\w+",
        weights=r"\w+",
    localrule: True
    conda:
        "../../envs/environment.yaml"
    params:
        mirror=lambda wildcards, output: launch.flags(DATASET, "mirror"),
    shell:
        "python -m lockstep weights --model {wildcards.model} --weights {wildcards.weights}"
        " {params.mirror} --output {output:q} > {log:q} 2>&1"
