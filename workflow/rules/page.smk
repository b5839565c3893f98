rule page:
    """One page that answers what was run, how good it is, and whether it can be believed."""
    input:
        # It is made of all that the page reads of the runs.
        rules.summarize.output,
        # The page links it, and says what lies behind the other figures.
        rules.report.output,
        expand("<results>/check/{world}.json", world=WORLDS),
    output:
        "<results>/index.html",
    log:
        "<logs>/page.log",
    benchmark:
        "<benchmarks>/page.tsv"
    localrule: True
    conda:
        "../../envs/environment.yaml"
    params:
        code=code_digest("lockstep.pipeline.page.write"),
        look=look_digest(),
        runs=list(RUNS),
        folder=subpath(output[0], parent=True),
    shell:
        "python -m lockstep page {params.folder:q} --runs {params.runs:q} > {log:q} 2>&1"
