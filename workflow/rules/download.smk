rule download:
    """Fetch the dataset's files and check their SHA-256; describe them, or the user's own files."""
    input:
        own_files,
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
        flags=flags(DATASET, "name", "path"),
        mirror=mirror,
        code=code_digest("lockstep.pipeline.stages.download"),
        folder=subpath(output[0], parent=True),
    shell:
        "python -m lockstep download {params.flags} {params.mirror} --output {params.folder:q}"
        " > {log:q} 2>&1"
