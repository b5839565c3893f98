"""partition: assign every training sample to one of S shards.

The table depends on the labels, the scheme, S and the seed, and on nothing else. Sizes are equal to
within one.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from lockstep.data.arrays import open_part
from lockstep.data.shards import assign
from lockstep.errors import UserError
from lockstep.files import atomic


def partition(
    data: Path, scheme: str, shards: int, seed: int, alpha: float, output: Path
) -> pd.DataFrame:
    """Write `shards.csv` (sample, label, shard) and `summary.csv` (shard, label, samples).

    Args:
        data: the folder of the prepared dataset.
        scheme: iid, stratified, contiguous or dirichlet.
        shards: S.
        seed: what the random schemes draw from.
        alpha: the concentration of dirichlet.
        output: the folder to write to.

    Raises:
        UserError: there are fewer samples than shards.
    """
    labels = np.asarray(open_part(data / "train").labels)
    if len(labels) < shards:
        raise UserError(
            f"shards: {shards} is more than the {len(labels)} training samples in {data}"
        )
    shard = assign(labels, scheme, shards, seed, alpha)
    table = pd.DataFrame({"sample": np.arange(len(labels)), "label": labels, "shard": shard})
    counts = pd.crosstab(table["shard"], table["label"]).reset_index()
    counts = counts.melt(id_vars="shard", value_name="samples").sort_values(["shard", "label"])
    for name, frame in (("shards.csv", table), ("summary.csv", counts)):
        with atomic(output / name) as draft:
            frame.to_csv(draft, index=False)
    return counts
