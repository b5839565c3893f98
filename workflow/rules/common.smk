"""What the rules share: the checked configuration, and what the wildcards of a job stand for."""

import re
import shlex
import sys
import time
from pathlib import Path

from lockstep.errors import UserError
from lockstep.pipeline import launch
from lockstep.pipeline.experiment import check_given, folders, load
from lockstep.pipeline.kinds import TASKS
from lockstep.pipeline.page import Live, look_digest
from lockstep.pipeline.planned import announce
from lockstep.pipeline.yaml_file import check_file
from lockstep.provenance import code_digest, preparing_digest, training_digest

STARTED = time.time()


def nodes(rulename):
    """Return on how many nodes a profile has the ranks of a rule, by the name that it has there."""
    profile = workflow.resource_settings.overwrite_resources.get(rulename, {})
    return profile["nodes"].value if "nodes" in profile else 1


try:
    # A module has its configuration from another's files, or from none.
    FILES = [] if MODULE else workflow.configfiles
    for file in FILES:
        check_file(Path(file))
    EXPERIMENT, RUNS = load(config, where=", ".join(map(str, FILES)) or MODULE)
    if not MODULE:  # else a rule of the workflow around may make them
        check_given(EXPERIMENT, RUNS, ", ".join(map(str, FILES)))
    # Snakemake lays the files that it was given over the standard one.
    named = [MODULE] if MODULE else workflow.overwrite_configfiles or FILES
    FOLDERS = folders(EXPERIMENT, map(Path, named))
    launch.check_nodes(RUNS, nodes(workflow.modifier.modify_rulename("train_run")))
    # By what decides which code it is, for a thousand runs of one kind.
    kinds = {(run.strategy, run.model) for run in RUNS.values()}
    TRAIN_CODE = {kind: training_digest(*kind) for kind in kinds}
except UserError as error:
    # One line and status 2, as everywhere; an exception would bring a page of Snakemake's own.
    print(error, file=sys.stderr)
    sys.exit(2)

DATASET = EXPERIMENT.dataset
DATA = f"data/{DATASET.id}"
TASK = TASKS[DATASET.task]
ARRAYS = launch.arrays(TASK)
PARTITIONS = {run.partition: run for run in RUNS.values()}
WORLDS = launch.worlds(RUNS.values())
MEASURED = [name for name, (run, *_) in WORLDS.items() if run.ranks > 1]
PREDICTED = launch.predicted(RUNS)
PAGE = Live(Path(FOLDERS["results"]), RUNS)
HELD = []  # files that are open as long as the workflow runs
MPI = shlex.join(launch.OURS)  # a profile sets another


wildcard_constraints:
    run="|".join(map(re.escape, RUNS)),
    partition="|".join(map(re.escape, PARTITIONS)),
    world=r"[^/]+",


def launched(wildcards):
    """Return the run that ranks are started for, or one of those that a check stands for."""
    if "run" in wildcards.keys():
        return RUNS[wildcards.run]
    return WORLDS[wildcards.world][0]


def cores(wildcards):
    return launched(wildcards).ranks * launched(wildcards).threads


def threads(wildcards):
    return launched(wildcards).threads


def tasks(wildcards, rulename):
    return launch.tasks(launched(wildcards).ranks, nodes(rulename))


def tasks_per_node(wildcards, rulename):
    return launch.tasks_per_node(launched(wildcards).ranks, nodes(rulename))


def start(wildcards, resources):
    """Return the words that start a stage, which follows, on the ranks of a run."""
    run, words = launched(wildcards), shlex.split(resources.mpi)
    words = launch.start(words, run.ranks, run.threads, resources.get("nodes", 1))
    return shlex.join(words)


def flags(*names):
    """Return a function that gives the flags of a job's run."""
    return lambda wildcards: launch.flags(launched(wildcards), *names)


def train_code(wildcards):
    """Return the digest of the code that decides the bits of a run."""
    run = RUNS[wildcards.run]
    return TRAIN_CODE[run.strategy, run.model]


def partition_of_run(name):
    """Return a function that gives a file of a run's partition."""
    return lambda wildcards: f"{DATA}/partition/{RUNS[wildcards.run].partition}/{name}"


# What a task has besides curves and time.
FIGURES = {"confusion": "confusion matrix", "shards": "samples by class and shard"}
COMMUNICATION = {
    "communication.html": "all that was measured, and the fit",
    "latency.svg": "time by size",
    "bandwidth.svg": "bus bandwidth by size",
}


def figure(file, category, of, label):
    """Return a file that the report shows, of a run or a launch."""
    about = {"subcategory": of, "labels": {"figure": label}}
    caption = f"../report/{Path(file).stem}.rst"
    return report(file, caption=caption, category=category, **about)


def figures_of(run):
    """Return the figures of a run."""
    shown = {
        "curves": f"loss and {TASK.main} by epoch",
        "time": "time of a step by part",
    }
    shown |= {name: FIGURES[name] for name in TASK.figures}
    shown |= {"scaling": "predicted scaling"} if run in PREDICTED else {}
    folder = f"<results>/{run}/figures"
    return [
        figure(f"{folder}/{name}.svg", "Runs", run, label)
        for name, label in shown.items()
    ]


def figures_of_launch(world):
    """Return what is shown of how fast the ranks of a launch talk to one another."""
    folder = f"<results>/figures/{world}"
    return [
        figure(f"{folder}/{file}", "Communication", world, label)
        for file, label in COMMUNICATION.items()
    ]
