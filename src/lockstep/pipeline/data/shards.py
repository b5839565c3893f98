"""Shards: which samples of the training set belong together."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from lockstep import random as streams
from lockstep.errors import UserError, first_line
from lockstep.files import DAMAGE, sha256


def assign(
    labels: np.ndarray, scheme: str, shards: int, seed: int, alpha: float = 0.5
) -> np.ndarray:
    """Return the shard (int64) of each sample, given the samples' labels (int64)."""
    count = len(labels)
    if scheme == "contiguous":
        return np.arange(count) * shards // count
    if scheme == "dirichlet":
        return _dirichlet(labels, shards, seed, alpha)
    order = streams.permutation(count, "partition", seed)
    if scheme in ("stratified", "balanced"):
        # Dealt out like cards, class by class: each shard gets each class to within one sample.
        order = order[np.argsort(labels[order], kind="stable")]
    shard = np.empty(count, np.int64)
    shard[order] = np.arange(count) % shards
    return shard


def balance(labels: np.ndarray, seed: int) -> np.ndarray:
    """Return samples (int64), of each class as many as the largest has.

    Those of smaller classes come several times, each as often as any other of its class to within
    one.

    Args:
        labels: of all samples (int64, N).
        seed: what decides which come once more.
    """
    order = streams.permutation(len(labels), "balance", seed)
    classes, counts = np.unique(labels, return_counts=True)
    some = [np.resize(order[labels[order] == label], counts.max()) for label in classes]
    return np.sort(np.concatenate(some))


def _dirichlet(labels: np.ndarray, shards: int, seed: int, alpha: float) -> np.ndarray:
    """Skew the classes of each shard (Hsu, Qi and Brown, "Measuring the effects of non-identical
    data distribution for federated visual classification", 2019, section 3).

    Each shard draws its class proportions q ~ Dir(alpha p), with p those of the whole data, and
    then its samples by q without replacement; a class that is used up leaves the draw.
    """
    draw = streams.generator("dirichlet", seed, shards)
    order = streams.permutation(len(labels), "partition", seed)
    classes, counts = np.unique(labels, return_counts=True)
    pools = [list(order[labels[order] == label]) for label in classes]
    concentration = alpha * counts / counts.sum()
    shard = np.empty(len(labels), np.int64)
    for number in range(shards):
        # Proportions never quite reach zero, so that any class left over can still be drawn.
        proportions = draw.dirichlet(concentration) + 1e-12
        wanted = len(labels) * (number + 1) // shards - len(labels) * number // shards
        while wanted:
            left = np.array([len(pool) for pool in pools])
            weights = np.where(left > 0, proportions, 0)
            taken = np.minimum(draw.multinomial(wanted, weights / weights.sum()), left)
            for pool, take in zip(pools, taken, strict=True):
                shard[pool[:take]] = number
                del pool[:take]
            wanted -= int(taken.sum())
    return shard


def read_members(
    table: Path, labels: np.ndarray | int, shards: int, repeats: bool = False
) -> list[np.ndarray]:
    """Read a partition: the sample ids (int64, ascending) of each shard.

    Args:
        table: with a row for each sample.
        labels: of the samples; or how many there are, where they have none.
        shards: S.
        repeats: whether a sample may be there more than once, in one shard or several.

    Raises:
        UserError: the table is not a partition of samples with these labels into `shards` shards.
    """
    columns = ["sample", "shard"] if isinstance(labels, int) else ["sample", "label", "shard"]
    samples = labels if isinstance(labels, int) else len(labels)
    try:
        with np.errstate(invalid="raise"):  # what is no number would become one
            frame = pd.read_csv(table, usecols=columns, dtype=np.int64)
    except DAMAGE as error:
        what = f"{', '.join(columns[:-1])} and {columns[-1]}"
        raise UserError(f"{table}: not a table of {what} ({first_line(error)})") from None
    ids = frame["sample"].to_numpy()
    found = np.unique(ids) if repeats else np.sort(ids)
    if not np.array_equal(found, np.arange(samples)):
        once = "at least once" if repeats else "once"
        raise UserError(f"{table}: does not name each of {samples} samples {once}; partition again")
    if not isinstance(labels, int) and (frame["label"].to_numpy() != labels[ids]).any():
        raise UserError(f"{table}: its labels are not those of the data; partition again")
    shard = frame["shard"].to_numpy()
    members = [np.sort(ids[shard == number]) for number in range(shards)]
    if sum(map(len, members)) != len(ids) or not all(map(len, members)):
        raise UserError(f"{table}: expected shards 0 to {shards - 1}, none empty; partition again")
    return members


def is_edited(table: Path) -> bool:
    """Return whether a table is not, or no longer, what `partition` wrote.

    `partition` leaves its SHA-256 in partition.json beside it; what has none is the user's own.
    """
    try:
        record = json.loads(table.with_name("partition.json").read_text(encoding="utf-8"))
        return bool(record["shards_sha256"] != sha256(table))
    except DAMAGE:
        return True
