rule prepare:
    """Decode the dataset into memory-mapped arrays, with a manifest of what they are."""
    input:
        rules.download.output,
    output:
        manifest=f"{DATA}/manifest.json",
        arrays=expand(f"{DATA}/{{array}}", array=ARRAYS),
    log:
        f"<logs>/prepare/{DATASET.id}.log",
    benchmark:
        f"<benchmarks>/prepare/{DATASET.id}.tsv"
    localrule: True
    conda:
        "../../envs/environment.yaml"
    threads: 16  # or all that there are; more would wait for the one that writes
    params:
        flags=launch.flags_of_data(DATASET),
        code=preparing_digest(DATASET.path if DATASET.name == "function" else ""),
        folder=subpath(output.manifest, parent=True),
    shell:
        "python -m lockstep prepare {params.flags} --threads {threads}"
        " --output {params.folder:q} > {log:q} 2>&1"
