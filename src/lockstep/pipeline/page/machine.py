"""Where runs came from: their launches, files, versions and hashes, and what trains one again."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lockstep.pipeline import differences
from lockstep.pipeline.kinds import MODELS
from lockstep.pipeline.page.collect import Check, Found

HASHES = {
    "model.safetensors": "model_sha256",
    **differences.RESULTS,
    "initial weights": "initial_sha256",
    "shards": "partition_sha256",
}


def launches_of(checks: Mapping[str, Check]) -> list[dict[str, Any]]:
    """Return what `check` found of each launch, for a table."""
    return [
        {
            "name": name,
            "ranks": len(check.ranks),
            "hosts": sorted({place.host for place in check.ranks}),
            "cores": max(place.cores for place in check.ranks),
            "load": max(place.load for place in check.ranks),
            "launcher": check.launcher,
            "mpi": check.mpi,
            "system": check.system,
            "backends": {name: spent.median_ms for name, spent in check.backends.items()},
            "page": f"figures/{name}/communication.html",
        }
        for name, check in checks.items()
    ]


def files_of(found: Sequence[Found]) -> list[dict[str, Any]]:
    """Return the files of each run that are there, by their addresses from the page, and what
    tells of it."""
    names = (
        *("train.json", "history.csv", "metrics.json", "predictions.csv", "confusion.csv"),
        *MODELS.values(),
        *("figures/curves.svg", "figures/time.svg", "figures/scaling.svg"),
    )
    return [
        {
            "name": one.name,
            "command": reproduce(one),
            "files": [
                (f"{quote(one.name)}/{name}", name)
                for name in names
                if (one.folder / name).exists()
            ],
            "hashes": [(what, getattr(one.training, key)) for what, key in HASHES.items()],
            "started": one.training.started,
            "backend": one.training.backend,
            "versions": one.training.versions,
            "places": _places(one),
        }
        for one in found
        if one.training
    ]


def _places(found: Found) -> list[str]:
    """Return where ranks ran: each kind of place, and how many were there."""
    assert found.training
    counts: dict[str, int] = {}
    for place in found.training.ranks:
        extra = place.model_extra or {}
        said = ", ".join(filter(None, [str(extra.get("host", "")), place.processor, place.device]))
        counts[said] = counts.get(said, 0) + 1
    return [f"{count} x {said}" for said, count in counts.items()]


def commands(results: Path, found: Sequence[Found]) -> list[tuple[str, str]]:
    """Return what makes all of it again, and one run: what for, and the command."""
    said = []
    if (results / "config.json").exists():
        where = shlex.quote(str(results / "config.json"))
        said.append(("all of it", f"snakemake --cores all --configfile {where}"))
    said += [(f"the run {one.name}", reproduce(one)) for one in found if one.training]
    return said


def reproduce(found: Found) -> str:
    """Return the command that trains a run again and compares the bits."""
    assert found.training
    ranks = len(found.training.ranks)
    start = f"lockstep launch -n {ranks} " if ranks > 1 else "lockstep "
    return f"{start}reproduce {shlex.quote(str(found.folder))}"
