# Figures of so many runs are drawn by one process: most of the time of one run is its start.
DRAWN_AT_ONCE = 12
DRAWING = code_digest("lockstep.pipeline.report")
DRAWN = []
for first in range(0, len(RUNS), DRAWN_AT_ONCE):
    some = list(RUNS)[first : first + DRAWN_AT_ONCE]
    measured = {launch.world(RUNS[run]) for run in some if run in PREDICTED}
    drawn = [one for run in some for one in figures_of(run)]
    DRAWN += map(str, drawn)

    rule:
        name:
            f"draw_runs_{first}"
        input:
            expand(rules.train_run.output.record, run=some),
            expand(rules.train_run.output.history, run=some),
            expand(rules.evaluate_run.output, run=some),
            [f"{DATA}/partition/{RUNS[run].partition}/summary.csv" for run in some],
            expand(
                "<results>/check/{world}.{kind}", world=measured, kind=["json", "csv"]
            ),
        output:
            drawn,
        log:
            f"<logs>/draw_runs/{first}.log",
        benchmark:
            f"<benchmarks>/draw_runs/{first}.tsv"
        localrule: True
        conda:
            "../../envs/environment.yaml"
        params:
            code=DRAWING,
            metric=TASK.title(TASK.main),
            runs=some,
            folder=subpath(output[0], ancestor=3),
        shell:
            "python -m lockstep report {params.folder:q} --runs {params.runs:q} > {log:q} 2>&1"


rule draw_table:
    """Draw the table of all runs, and what was found about the machine and its launches."""
    input:
        rules.summarize.output.table,
        rules.check.input,
        checks=expand("<results>/check/{world}.json", world=WORLDS),
    output:
        [drawn for world in MEASURED for drawn in figures_of_launch(world)],
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
        "<logs>/draw_table.log",
    benchmark:
        "<benchmarks>/draw_table.tsv"
    localrule: True
    conda:
        "../../envs/environment.yaml"
    params:
        code=DRAWING,
        metric=TASK.title(TASK.main),
        unit=TASK.unit,
        folder=subpath(output.runs, ancestor=2),
    shell:
        "python -m lockstep report {params.folder:q} --checks {input.checks:q} > {log:q} 2>&1"


rule figures:
    """All figures and tables of the report."""
    input:
        rules.draw_table.output,
        DRAWN,


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
