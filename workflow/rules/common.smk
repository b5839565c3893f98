"""What the rules share: the checked configuration, and the command lines made from it."""

import json
import os
import re
import shlex
import sys
import time
from pathlib import Path

from lockstep.pipeline.config import UPKEEP, check_file, load
from lockstep.pipeline.data.sources import SOURCES
from lockstep.errors import UserError
from lockstep.provenance import caps
from lockstep.provenance import code_digest

try:
    for file in workflow.configfiles:
        check_file(Path(file))
    EXPERIMENT, RUNS = load(config, where=", ".join(map(str, workflow.configfiles)))
    TRAIN_CODE = {
        name: code_digest("lockstep.pipeline.stages.train", run.model)
        for name, run in RUNS.items()
    }
except UserError as error:
    # One line and status 2, as everywhere; an exception would bring a page of Snakemake's own.
    print(error, file=sys.stderr)
    sys.exit(2)

DATASET = EXPERIMENT.dataset
DATA = f"data/{DATASET.id}"
ARRAYS = [
    f"{part}/{name}.npy" for part in ("train", "test") for name in ("images", "labels")
]
PARTITIONS = {run.partition: run for run in RUNS.values()}


wildcard_constraints:
    run="|".join(map(re.escape, RUNS)),
    partition="|".join(map(re.escape, PARTITIONS)),
    world=r"[^/]+",


def flags(model, *names):
    """Return the flags of the command line for fields of a part of the configuration."""
    words = []
    if getattr(model, "scheme", "dirichlet") != "dirichlet":
        names = [name for name in names or type(model).model_fields if name != "alpha"]
    for name in names or type(model).model_fields:
        value, flag = getattr(model, name), f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        elif value is not None:
            words.append(
                f"{flag}={value}"
            )  # in one word: a value may begin with a hyphen
    return shlex.join(words)


def run_flags(wildcards):
    run = RUNS[wildcards.run]
    return flags(run, *(name for name in type(run).model_fields if name not in UPKEEP))


def run_upkeep(wildcards, input):
    # Taking `input` makes the param one that is not recorded: these change nothing of a result.
    return flags(RUNS[wildcards.run], *sorted(UPKEEP))


def threads_flag(wildcards):
    return flags(RUNS[wildcards.run], "threads")


def run_world(wildcards):
    return flags(RUNS[wildcards.run], "ranks", "threads")


def partition_flags(wildcards):
    return flags(PARTITIONS[wildcards.partition], "shards", "scheme", "alpha", "seed")


def own_files(wildcards):
    """Return the path of the user's own dataset, whatever characters it is made of."""
    return [DATASET.path] if DATASET.path else []


def mirror(wildcards, input):
    # Taking `input` makes a param one that is not recorded: another mirror has the same files.
    return flags(DATASET, "mirror")


def world(run):
    """Return the name of the launch that a run needs: runs that launch alike are checked once."""
    return f"{run.ranks}x{run.threads}-{run.device}"


WORLDS = {world(run): run for run in RUNS.values()}
# One rank has no communication that could be measured.
MEASURED = [name for name, run in WORLDS.items() if run.ranks > 1]
# A step of sync_sgd is computing and then one sum over the ranks; others are not so simple.
PREDICTED = [
    name
    for name, run in RUNS.items()
    if run.strategy == "sync_sgd" and world(run) in MEASURED
]


def check_flags(wildcards):
    """Return the flags for a launch, and for the models of the runs that are launched so."""
    runs = [run for run in RUNS.values() if world(run) == wildcards.world]
    words = [flags(runs[0], "ranks", "threads", "device"), "--models"]
    words += sorted({shlex.quote(run.model) for run in runs})
    words.append(f"--images={min(run.batch // run.shards for run in runs)}")
    words.append(f"--seconds={EXPERIMENT.check_seconds}")
    if all(run.oversubscribe for run in runs):
        words.append("--oversubscribe")
    if DATASET.path is None:
        source = SOURCES[DATASET.name]
        words += [
            "--shape",
            *map(str, source.shape),
            "--classes",
            str(len(source.classes)),
        ]
    else:
        words += ["--data", DATA]
    return " ".join(words)


def run_check(wildcards):
    return f"<results>/check/{world(RUNS[wildcards.run])}.json"


def run_check_table(wildcards):
    return f"<results>/check/{world(RUNS[wildcards.run])}.csv"


def run_partition(wildcards):
    return f"{DATA}/partition/{RUNS[wildcards.run].partition}/shards.csv"


def run_partition_summary(wildcards):
    return f"{DATA}/partition/{RUNS[wildcards.run].partition}/summary.csv"


def run_code(wildcards):
    return TRAIN_CODE[wildcards.run]


def summary_folders(wildcards, input):
    return [os.path.dirname(path) for path in input.records]


def launched(wildcards):
    """Return the run that ranks are started for, or one of those that a check stands for."""
    return RUNS[wildcards.run] if "run" in wildcards.keys() else WORLDS[wildcards.world]


def cores(wildcards):
    return launched(wildcards).ranks * launched(wildcards).threads


def threads(wildcards):
    return launched(wildcards).threads


def nodes(ranks, rulename):
    """Return on how many nodes a profile has the ranks of a rule; a single one needs no second."""
    profile = workflow.resource_settings.overwrite_resources.get(rulename, {})
    return profile["nodes"].value if "nodes" in profile and ranks > 1 else 1


for name, run in RUNS.items():
    if run.ranks % (count := nodes(run.ranks, "train_run")):
        print(
            f"nodes: the profile asks for {count}, and the {run.ranks} ranks of the run {name} "
            f"cannot share them evenly; take a number that divides the ranks of every run",
            file=sys.stderr,
        )
        sys.exit(2)


# SLURM has to know how many ranks a node gets, or it may put four on two nodes as 3 and 1. Its
# plugin wants more than one task in each of these, and takes a single one as text.
def tasks_per_node(wildcards, rulename):
    ranks = launched(wildcards).ranks
    each = ranks // nodes(ranks, rulename)
    return each if each > 1 else 0


def tasks(wildcards, rulename):
    return 0 if tasks_per_node(wildcards, rulename) else str(launched(wildcards).ranks)


def launch(wildcards, resources):
    """Return the words that start `python` on the ranks of a run."""
    run = launched(wildcards)
    words = shlex.split(resources.mpi)
    programs = [Path(word).name for word in words]
    python = ["python", "-m", "mpi4py"] if run.ranks > 1 else ["python"]
    if "srun" in programs:
        after = programs.index("srun") + 1
        numbers = srun_numbers(run, resources.get("nodes", 1))
        if run.ranks == 1:
            words = [word for word in words if not word.startswith("--mpi=")]
        return shlex.join(words[:after] + numbers + words[after:] + python)
    if run.ranks == 1:
        return "python"
    if "mpirun" in programs and os.geteuid() == 0:
        words.append("--allow-run-as-root")  # in a container there is often nobody else
    return shlex.join([*words, "-n", str(run.ranks), *python])


def srun_numbers(run, nodes):
    """Return a launch's numbers for srun, which does not always know those that the job has."""
    count = nodes if run.ranks > 1 else 1
    return [
        *("--kill-on-bad-exit=1", f"--nodes={count}", f"--ntasks={run.ranks}"),
        *(f"--ntasks-per-node={run.ranks // count}", f"--cpus-per-task={run.threads}"),
        *([] if run.ranks > 1 else ["--mpi=none"]),
    ]


# The launcher of local ranks; a profile sets another. Cores are not bound, since two jobs of one
# machine would be bound to the same ones; the stages see to it that there are enough. Without
# libfabric, which one host has no use for, ranks start a second sooner. Ranks on other hosts get the
# environment that decides their bits, and what a user says about the network. A host that answers no
# more is given up by ssh after 9 s, which ends mpirun with an error, and by mpirun itself and on the
# host that is cut off after 15 s, and not after eight minutes.
MPIRUN = " ".join(
    [
        "mpirun --map-by :OVERSUBSCRIBE --bind-to none --mca btl ^ofi -x PATH -x PYTHONPATH",
        "--prtemca plm_ssh_args '-x -o ServerAliveInterval=3 -o ServerAliveCountMax=2'",
        "--prtemca oob_tcp_keepalive_time 5 --prtemca oob_tcp_keepalive_intvl 2",
        "--prtemca oob_tcp_keepalive_probes 5",
        *(f"-x {name}" for name in caps()),
        *(f"-x {name}" for name in os.environ if name.startswith(("GLOO_", "NCCL_"))),
        *(["--hostfile hostfile"] if Path("hostfile").exists() else []),
    ]
)


def resolved_config():
    """Return the whole configuration as JSON, but for what changes nothing of a result."""
    whole = dict(config)
    for section, unrecorded in (("dataset", {"mirror"}), ("defaults", UPKEEP)):
        values = config.get(section, {}).items()
        whole[section] = {key: v for key, v in values if key not in unrecorded}
    return json.dumps(whole, indent=2, sort_keys=True)


STARTED = time.time()


def show_summary():
    """Print the table of runs and where the report is, if this run of Snakemake made them."""
    from lockstep.pipeline.stages.summarize import for_terminal

    results = Path(EXPERIMENT.pathvars.get("results", "results"))
    table, page = results / "summary.csv", results / "report.html"
    if table.exists() and table.stat().st_mtime > STARTED:
        print(for_terminal(table), file=sys.stderr)
    if page.exists() and page.stat().st_mtime > STARTED:
        print(f"\nThe report: {page}", file=sys.stderr)
