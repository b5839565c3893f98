rule download:
    """Fetch the dataset's files and check their SHA-256; describe them, or the user's own files."""
    input:
        [DATASET.path] if DATASET.path else [],
    output:
        sources=f"{DATA}/sources.json",
        files=expand(
            f"{DATA}/raw/{{file}}",
            file=getattr(SOURCES.get(DATASET.name), "files", []),
        ),
    log:
        "<logs>/download.log",
    benchmark:
        "<benchmarks>/download.tsv"
    localrule: True
    conda:
        "../../envs/environment.yaml"
    params:
        flags=flags(DATASET, "name", "path"),
        mirror=mirror,
        code=code_digest("lockstep.download"),
        folder=subpath(output.sources, parent=True),
    shell:
        "python -m lockstep download {params.flags} {params.mirror} --output {params.folder:q}"
        " > {log:q} 2>&1"
