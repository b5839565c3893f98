"""partition: assign every training sample to one of S shards, or, to balance classes, to several.

The table depends on the labels, the scheme, S and the seed, and on nothing else. Sizes are equal to
within one. Samples without labels are all of one class: `stratified` is `iid` for them.
"""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd

from lockstep.errors import UserError
from lockstep.files import sweep, write_json, write_text
from lockstep.pipeline.data.arrays import open_part
from lockstep.pipeline.data.manifest import check_files, read_manifest
from lockstep.pipeline.data.shards import assign, balance


def partition(
    data: Path, scheme: str, shards: int, seed: int, alpha: float, output: Path
) -> pd.DataFrame:
    """Write `shards.csv` (sample, label, shard), `summary.csv` (shard, label, samples), and
    `partition.json`, which says how they came about. Without labels there is no such column.

    Args:
        data: the folder of the prepared dataset.
        scheme: iid, stratified, contiguous, dirichlet, or balanced.
        shards: S.
        seed: what the random schemes draw from.
        alpha: the concentration of dirichlet.
        output: the folder to write to.

    Raises:
        UserError: there are fewer samples than shards, no labels for the scheme, or other labels
            than `prepare` wrote.
    """
    manifest = read_manifest(data)
    manifest.kind.check_scheme(scheme)
    part = open_part(data / "train", manifest.kind)
    file = "train/labels.npy" if manifest.kind.classes else ""
    if file:
        check_files(data, manifest, file)
    labels = np.asarray(part.targets) if file else np.zeros(len(part), np.int64)
    if len(labels) < shards:
        raise UserError(
            f"shards: {shards} is more than the {len(labels)} training samples in {data}"
        )
    samples = balance(labels, seed) if scheme == "balanced" else np.arange(len(labels))
    labels = labels[samples]
    shard = assign(labels, scheme, shards, seed, alpha)
    table = pd.DataFrame({"sample": samples, "label": labels, "shard": shard})
    counts = pd.crosstab(table["shard"], table["label"]).reset_index()
    counts = counts.melt(id_vars="shard", value_name="samples").sort_values(["shard", "label"])
    if not file:
        table, counts = table.drop(columns="label"), counts.drop(columns="label")
    text = table.to_csv(index=False)
    record = {
        "scheme": scheme,
        "shards": shards,
        "seed": seed,
        "alpha": alpha if scheme == "dirichlet" else None,
        "labels_sha256": manifest.sha256.get(file),
        "shards_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
    # While shards.csv is there, the other two are about it: it goes first, and comes last.
    (output / "shards.csv").unlink(missing_ok=True)
    for name in ("shards.csv", "summary.csv", "partition.json"):
        sweep(output / name)
    write_json(output / "partition.json", record)
    write_text(output / "summary.csv", counts.to_csv(index=False))
    write_text(output / "shards.csv", text)
    return counts


def for_terminal(counts: pd.DataFrame) -> str:
    """Return how many samples each shard has, of each class where there are some."""
    if "label" in counts:
        return counts.pivot(index="shard", columns="label", values="samples").to_string()
    return counts.to_string(index=False)
