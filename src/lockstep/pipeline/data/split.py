"""Which samples are for training, for validation and for testing."""

from itertools import islice

import numpy as np

from lockstep import random as streams
from lockstep.errors import UserError
from lockstep.pipeline.config import Dataset

PARTS = ("train", "validation", "test")
TRAIN, VALIDATION, TEST = range(3)

# Groups are dealt into so many folds at most, of which some make a part, or more where one would be
# too much: dealing takes time, and with these a share is missed by a fortieth at most.
MOST_FOLDS = 20

WORDS = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("validation", "valid", "val", "dev"), VALIDATION),
    **dict.fromkeys(("test", "testing"), TEST),
}
"""The part that a word means, whichever case its letters have."""


def split(
    labels: np.ndarray,
    dataset: Dataset,
    names: list[str],
    where: str,
    *,
    parts: tuple[int, ...] = (VALIDATION, TEST),
    groups: np.ndarray | None = None,
) -> np.ndarray:
    """Return the part of each sample (uint8, N), an index of PARTS.

    Args:
        labels: of all samples (int64, N); zeros where there are no classes.
        dataset: says the share of each part.
        names: of the classes; without them, the samples are of one kind.
        where: the dataset, for messages.
        parts: those that get their share here: a dataset may bring one of its own.
        groups: of each sample (N): those of one group stay together.

    Raises:
        UserError: too few are left for training.
    """
    shares = {
        part: share
        for part, share in (
            (TEST, dataset.test_fraction),
            (VALIDATION, dataset.validation_fraction),
        )
        if part in parts and share
    }
    found = np.zeros(len(labels), np.uint8)
    if groups is not None:
        return _of_groups(labels, groups, shares, found, where)
    for label in np.unique(labels) if len(labels) else []:
        ids = np.flatnonzero(labels == label)
        order = streams.permutation(len(ids), "test", *([int(label)] if names else []))
        start = 0
        for part, share in shares.items():
            count = max(1, round(share * len(ids)))
            found[ids[order[start : start + count]]] = part
            start += count
        if shares and start >= len(ids):
            what = f"class {names[label]!r}" if names else "it"
            keys = " and ".join(f"a {PARTS[part]}_fraction of {s}" for part, s in shares.items())
            raise UserError(
                f"{where}: {what} has too few {'images' if names else 'samples'}, {len(ids)}, for "
                f"{keys} to leave any for training; add some"
            )
    return found


def _of_groups(
    labels: np.ndarray,
    groups: np.ndarray,
    shares: dict[int, float],
    found: np.ndarray,
    where: str,
) -> np.ndarray:
    """Split by whole groups, so that classes have about the same share everywhere."""
    from sklearn.model_selection import StratifiedGroupKFold

    taken = 0.0
    for part, share in shares.items():
        left = np.flatnonzero(found == TRAIN)
        # As sklearn wants it, some class has as many samples as there are folds.
        most = min(len(np.unique(groups[left])), int(np.bincount(labels[left]).max(initial=0)))
        if most < 2:
            raise UserError(
                f"{where}: cannot keep groups together in {PARTS[part]} and leave any for "
                f"training; set smaller fractions, or add groups"
            )
        of_left = share / (1 - taken)
        taken += share
        folds, count = _nearest(of_left, min(most, max(MOST_FOLDS, round(1 / of_left))))
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=0)
        dealt = splitter.split(left, labels[left], groups[left])
        for _, chosen in islice(dealt, count):
            found[left[chosen]] = part
    return found


def _nearest(share: float, most: int) -> tuple[int, int]:
    """Return into how many folds to deal, `most` or fewer, and how many of them are about a share;
    of those that come as near, the fewest."""

    def taken(folds: int) -> int:
        return min(folds - 1, max(1, round(share * folds)))

    folds = min(range(2, most + 1), key=lambda folds: abs(taken(folds) / folds - share))
    return folds, taken(folds)


def check_groups(groups: np.ndarray, which: np.ndarray, where: str) -> None:
    """Raise a UserError that names a group (of N) whose samples are in more than one part (N)."""
    names, numbers = np.unique(groups, return_inverse=True)
    lowest, highest = np.full(len(names), TEST, np.uint8), np.zeros(len(names), np.uint8)
    np.minimum.at(lowest, numbers, which)
    np.maximum.at(highest, numbers, which)
    if (torn := np.flatnonzero(lowest != highest)).size:
        first = torn[0]
        raise UserError(
            f"{where}: group {str(names[first])!r} is in {PARTS[lowest[first]]} and in "
            f"{PARTS[highest[first]]}; mend the split that the table has, or leave it out to have "
            f"whole groups taken"
        )


def of_names(values: np.ndarray, where: str) -> np.ndarray:
    """Return the part of each sample from the name of it that a table has.

    Raises:
        UserError: one is none.
    """
    for row, value in enumerate(values):
        if str(value).lower() not in WORDS:
            raise UserError(
                f"{where}: row {row + 1}: split is {str(value)!r}, expected train, validation or "
                f"test"
            )
    return np.array([WORDS[str(value).lower()] for value in values], np.uint8)
