"""crate: an experiment for an archive, with what it is of, as a Workflow Run RO-Crate.

The profile is https://w3id.org/ro/wfrun/workflow: a folder with the results, the workflow that made
them, and a ro-crate-metadata.json that says of each file what it is, and its SHA-256.
"""

import csv
import re
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lockstep import __version__
from lockstep.errors import UserError
from lockstep.files import check_sha256, sha256
from lockstep.pipeline import SNAKEFILE
from lockstep.pipeline.data.manifest import read_manifest
from lockstep.pipeline.kinds import TASKS
from lockstep.pipeline.record import (
    Training,
    check_trained_on,
    read_averaged,
    read_metrics,
    read_training,
)

PROFILES = {
    "https://w3id.org/ro/wfrun/process/0.5": "Process Run Crate",
    "https://w3id.org/ro/wfrun/workflow/0.5": "Workflow Run Crate",
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0": "Workflow RO-Crate",
}
# What is in the folder of an experiment, and in that of a run; a task has tables besides.
OF_ALL = {
    "config.json": "the whole configuration",
    "summary.csv": "a row for each run",
    "groups.csv": "mean and deviation over seeds",
    "index.html": "one page: how good the runs are, which bits agree, whether they converged, what "
    "they got wrong, and what they cost; figures that it links are in report.html",
    "report.html": "curves, tables, and what was found about the machine",
}
OF_A_RUN = {
    "model.safetensors": "weights after training",
    "averaged.safetensors": "the average of the last snapshots of the weights",
    "history.csv": "a row for each epoch",
    "train.json": "how the weights came about: configuration, seed, versions, hosts, hashes",
    "averaged.json": "what was averaged",
    "metrics.json": "what both models do with the test set",
}
KINDS = {
    ".json": "application/json",
    ".csv": "text/csv",
    ".html": "text/html",
    ".safetensors": "application/octet-stream",
    ".yaml": "application/yaml",
    ".smk": "text/x-python",
}


def crate(results: Path, license: str, output: Path) -> Path:
    """Write an experiment whose report is there to the folder `output`.

    Args:
        results: the folder of the experiment.
        license: what others may do with it: an identifier of SPDX's, or an address.
        output: a new folder.

    Returns:
        The metadata's file.

    Raises:
        UserError: files are missing, or are not those that the records name; or the library that
            writes crates is not installed.
    """
    try:
        from rocrate.rocrate import ROCrate
    except ImportError:
        raise UserError("crate: wants a package: pip install 'lockstep[crate]'") from None
    if not re.fullmatch(r"https?://\S+|[A-Za-z0-9.+-]+", license):
        raise UserError(
            f"flags: license: expected an identifier such as CC-BY-4.0, or an address, not "
            f"{license!r}"
        )
    if output.exists():
        raise UserError(f"{output}: is there already; take another folder")
    for name in OF_ALL:
        if not (results / name).exists():
            raise UserError(
                f"{results / name}: No such file; expected the folder of an experiment that has "
                f"its report: snakemake --cores all"
            )
    runs = {name: _checked(results / name, model) for name, model in _runs(results).items()}
    data = Path(next(iter(runs.values())).data)
    dataset = read_manifest(data).name

    found = ROCrate(version="1.1")  # that which the profiles build on
    found.metadata.extra_terms["sha256"] = "https://w3id.org/ro/terms/workflow-run#sha256"
    found.name = f"Training of {', '.join(runs)} on {dataset}"
    found.description = f"Models trained by Lockstep {__version__} on {dataset}, and their records."
    address = license if "://" in license else f"https://spdx.org/licenses/{license}"
    found.license = _named(found, address, license)
    made = [_add(found, results / name, name, what) for name, what in OF_ALL.items()]
    for run, training in runs.items():
        tables = dict.fromkeys((f"{name}.csv" for name in TASKS[training.task].tables), "a table")
        for name, what in (OF_A_RUN | tables).items():
            name = f"{run}/{name}"
            made.append(_add(found, results / name, name, f"{what}, of the run {run}"))
    what = "what the data are, with the SHA-256 of each array"
    seen = _add(found, data / "manifest.json", "data/manifest.json", what)

    workflow = _add_workflow(found)
    ended = max((results / run / "metrics.json").stat().st_mtime for run in runs)
    found.root_dataset["mentions"] = found.add_action(
        workflow,
        "#run",
        object=[made[0], seen],
        result=made[1:],
        properties={
            "name": found.name,
            "description": "Trained, averaged and measured by the workflow.",
            "startTime": min(training.started for training in runs.values()),
            "endTime": datetime.fromtimestamp(ended, UTC).isoformat(timespec="seconds"),
        },
    )
    found.root_dataset["conformsTo"] = [
        _named(found, address, name, version=address.rpartition("/")[2])
        for address, name in PROFILES.items()
    ]
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as draft:
        found.write(Path(draft, output.name))
        Path(draft, output.name).rename(output)
    return output / "ro-crate-metadata.json"


def _runs(results: Path) -> dict[str, str | None]:
    """Return the models of the runs that the summary has: others may be left of another table."""
    with (results / "summary.csv").open(newline="", encoding="utf-8") as table:
        models = {row["run"]: row.get("model_sha256") for row in csv.DictReader(table)}
    if not models:
        raise UserError(f"{results / 'summary.csv'}: there is no run in it; train one")
    if gone := [name for name in sorted(models) if not (results / name / "train.json").exists()]:
        raise UserError(f"{results}: {gone[0]}, a run of summary.csv, is not here; train it again")
    return dict(sorted(models.items()))


def _checked(run: Path, model: str | None) -> Training:
    """Return the record of a run whose model is that of the summary, and whose files are all those
    that the records name."""
    training = read_training(run)
    if training.model_sha256 != model:
        raise UserError(
            f"{run.parent / 'summary.csv'}: has another model of {run.name} than "
            f"{run / 'train.json'}; run the workflow again"
        )
    averaged, data = read_averaged(run, training), Path(training.data)
    read_metrics(run, training)
    for name, expected, record in (
        ("model.safetensors", training.model_sha256, "train.json"),
        ("history.csv", training.history_csv_sha256, "train.json"),
        ("averaged.safetensors", averaged.model_sha256, "averaged.json"),
    ):
        check_sha256(run / name, expected, run / record, "run the workflow again")
    manifest = read_manifest(data).seen_by(training.configuration)
    check_trained_on(training, run, manifest, data)
    return training


def _named(found: Any, address: str, name: str, **more: str) -> Any:
    from rocrate.model import ContextEntity

    about = {"@type": "CreativeWork", "name": name, **more}
    return found.add(ContextEntity(found, address, properties=about))


def _add(found: Any, path: Path, name: str, what: str) -> Any:
    """Add a file by a name within the crate."""
    about = {
        "name": name,
        "description": what,
        "sha256": sha256(path),
        "contentSize": str(path.stat().st_size),
        "encodingFormat": KINDS[path.suffix],
    }
    return found.add_file(path, name, properties=about)


def _add_workflow(found: Any) -> Any:
    """Add the workflow, and what its rules run with."""
    file = Path(SNAKEFILE)
    folder = file.parent
    about = {"name": "Lockstep", "version": __version__, "sha256": sha256(file)}
    workflow = found.add_workflow(
        file,
        "workflow/Snakefile",
        main=True,
        lang="snakemake",
        properties=about | {"encodingFormat": KINDS[".smk"]},
    )
    workflow["hasPart"] = [
        _add(found, path, f"workflow/rules/{path.name}", "rules of the workflow")
        for path in sorted((folder / "rules").glob("*.smk"))
    ]
    environment = folder.parent / "envs" / "environment.yaml"
    _add(found, environment, "envs/environment.yaml", "the packages that the rules run with")
    return workflow
