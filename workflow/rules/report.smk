# What a task has besides curves and time.
FIGURES = {"confusion": "confusion matrix", "shards": "samples by class and shard"}


rule draw_run:
    """Draw the figures of a run."""
    input:
        record=rules.train_run.output.record,
        history=rules.train_run.output.history,
        metrics=rules.evaluate_run.output.metrics,
        tables=[rules.evaluate_run.output[table] for table in TASK.tables],
        partition=partition_of_run("summary.csv"),
    output:
        **{
            name: report(
                f"<results>/{{run}}/figures/{name}.svg",
                caption=f"../report/{name}.rst",
                category="Runs",
                subcategory="{run}",
                labels={"figure": FIGURES[name]},
            )
            for name in TASK.figures
        },
        curves=report(
            "<results>/{run}/figures/curves.svg",
            caption="../report/curves.rst",
            category="Runs",
            subcategory="{run}",
            labels={"figure": f"loss and {TASK.main} by epoch"},
        ),
        time=report(
            "<results>/{run}/figures/time.svg",
            caption="../report/time.rst",
            category="Runs",
            subcategory="{run}",
            labels={"figure": "time of a step by part"},
        ),
    log:
        "<logs>/draw/{run}.log",
    benchmark:
        "<benchmarks>/draw/{run}.tsv"
    localrule: True
    conda:
        "../../envs/environment.yaml"
    params:
        code=code_digest("lockstep.pipeline.report"),
        metric=TASK.title(TASK.main),
        results=subpath(input.metrics, parent=True),
        folder=subpath(output.curves, parent=True),
    shell:
        "python -m lockstep report --results {params.results:q} --partition {input.partition:q}"
        " --output {params.folder:q} > {log:q} 2>&1"


rule draw_launch:
    """Draw the communication of a launch, as check measured it."""
    input:
        record=rules.check_world.output.record,
        table=rules.check_world.output.table,
    output:
        page=report(
            "<results>/figures/{world}/communication.html",
            caption="../report/communication.rst",
            category="Communication",
            subcategory="{world}",
            labels={"figure": "all that was measured, and the fit"},
        ),
        latency=report(
            "<results>/figures/{world}/latency.svg",
            caption="../report/latency.rst",
            category="Communication",
            subcategory="{world}",
            labels={"figure": "time by size"},
        ),
        bandwidth=report(
            "<results>/figures/{world}/bandwidth.svg",
            caption="../report/bandwidth.rst",
            category="Communication",
            subcategory="{world}",
            labels={"figure": "bus bandwidth by size"},
        ),
    log:
        "<logs>/draw_launch/{world}.log",
    benchmark:
        "<benchmarks>/draw_launch/{world}.tsv"
    localrule: True
    conda:
        "../../envs/environment.yaml"
    params:
        code=code_digest("lockstep.pipeline.report"),
        folder=subpath(output.page, parent=True),
    shell:
        "python -m lockstep report --launch {input.record:q} --output {params.folder:q}"
        " > {log:q} 2>&1"


rule scale_run:
    """Predict how fast a run would be on more ranks, and draw it as a prediction."""
    input:
        record=rules.train_run.output.record,
        history=rules.train_run.output.history,
        check=check_of_run("json"),
        table=check_of_run("csv"),
    output:
        report(
            "<results>/{run}/figures/scaling.svg",
            caption="../report/scaling.rst",
            category="Runs",
            subcategory="{run}",
            labels={"figure": "predicted scaling"},
        ),
    log:
        "<logs>/scale/{run}.log",
    benchmark:
        "<benchmarks>/scale/{run}.tsv"
    localrule: True
    conda:
        "../../envs/environment.yaml"
    params:
        code=code_digest("lockstep.pipeline.report"),
        results=subpath(input.record, parent=True),
        folder=subpath(output[0], parent=True),
    shell:
        "python -m lockstep report --results {params.results:q} --checks {input.check:q}"
        " --output {params.folder:q} > {log:q} 2>&1"


rule draw_summary:
    """Draw the table of all runs, and what was found about the machine."""
    input:
        summary=rules.summarize.output.table,
        checks=expand("<results>/check/{world}.json", world=WORLDS),
    output:
        runs=report(
            "<results>/figures/runs.html",
            caption="../report/runs.rst",
            category="Summary",
            labels={"figure": "table of runs"},
        ),
        comparison=report(
            f"<results>/figures/{TASK.main}.svg",
            caption="../report/comparison.rst",
            category="Summary",
            labels={"figure": f"{TASK.main} and speed by run"},
        ),
        machine=report(
            "<results>/figures/machine.html",
            caption="../report/machine.rst",
            category="Machine",
            labels={"figure": "what check found"},
        ),
    log:
        "<logs>/draw_summary.log",
    benchmark:
        "<benchmarks>/draw_summary.tsv"
    localrule: True
    conda:
        "../../envs/environment.yaml"
    params:
        code=code_digest("lockstep.pipeline.report"),
        metric=TASK.title(TASK.main),
        unit=TASK.unit,
        folder=subpath(output.runs, parent=True),
    shell:
        "python -m lockstep report --summary {input.summary:q} --checks {input.checks:q}"
        " --output {params.folder:q} > {log:q} 2>&1"


rule figures:
    """All figures and tables of the report."""
    input:
        rules.draw_summary.output,
        expand(rules.draw_run.output, run=RUNS),
        expand(rules.draw_launch.output, world=MEASURED),
        expand(rules.scale_run.output, run=PREDICTED),


rule report:
    """One HTML file with all figures, tables and statistics, by Snakemake's own report."""
    default_target: True
    input:
        rules.figures.input,
    output:
        html="<results>/report.html",
        config="<results>/config.json",
    log:
        "<logs>/report.log",
    benchmark:
        "<benchmarks>/report.tsv"
    localrule: True
    conda:
        "../../envs/environment.yaml"
    params:
        snakefile=SNAKEFILE,
        config=launch.resolved(config, FOLDERS),
    shell:
        # The workflow that runs this has locked the folder; a report only reads it.
        "(printf '%s\\n' {params.config:q} > {output.config:q}"
        " && snakemake --snakefile {params.snakefile:q} --configfile {output.config:q} --nolock"
        " --profile none --workflow-profile none --cores 1 --report {output.html:q} figures)"
        " > {log:q} 2>&1"
