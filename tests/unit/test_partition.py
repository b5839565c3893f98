"""partition: every sample in one shard, evenly, and the same each time."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.errors import UserError
from lockstep.files import sha256
from lockstep.pipeline.data.shards import assign, balance, is_edited, read_members
from lockstep.pipeline.stages.partition import partition

SCHEMES = ("iid", "stratified", "contiguous", "dirichlet")
LABELS = st.lists(st.integers(0, 5), min_size=1, max_size=200).map(np.array)
SEEDS = st.integers(0, 2**63 - 1)
ALPHAS = st.floats(1e-4, 1e4)


@st.composite
def cases(draw):
    labels = draw(LABELS)
    return labels, draw(st.integers(1, min(len(labels), 20))), draw(SEEDS), draw(ALPHAS)


@pytest.mark.parametrize("scheme", SCHEMES)
@given(case=cases())
@settings(max_examples=60)
def test_each_sample_has_one_shard_and_shards_are_even(scheme, case):
    labels, shards, seed, alpha = case
    shard = assign(labels, scheme, shards, seed, alpha)
    assert shard.shape == labels.shape
    assert shard.dtype == np.int64
    sizes = np.bincount(shard, minlength=shards)
    assert len(sizes) == shards
    assert sizes.max() - sizes.min() <= 1
    assert np.array_equal(shard, assign(labels, scheme, shards, seed, alpha))


@given(cases())
def test_stratified_shards_have_each_class_within_one(case):
    labels, shards, seed, _ = case
    shard = assign(labels, "stratified", shards, seed)
    for label in np.unique(labels):
        of_class = np.bincount(shard[labels == label], minlength=shards)
        assert of_class.max() - of_class.min() <= 1


@given(cases())
def test_balanced_shards_have_as_many_of_each_class(case):
    labels, shards, seed, _ = case
    samples = balance(labels, seed)
    classes, counts = np.unique(labels, return_counts=True)
    assert np.array_equal(samples, balance(labels, seed))
    assert np.unique(labels[samples], return_counts=True)[1].tolist() == [counts.max()] * len(
        classes
    )
    for label in classes:
        times = np.bincount(samples, minlength=len(labels))[labels == label]
        assert times.min() >= 1
        assert times.max() - times.min() <= 1
    shard = assign(labels[samples], "balanced", shards, seed)
    sizes = np.bincount(shard, minlength=shards)
    assert sizes.max() - sizes.min() <= 1


def test_a_balanced_table_is_written_and_read(tmp_path, digits):
    table = tmp_path / "out" / "shards.csv"
    counts = partition(digits, "balanced", 4, 0, 0.5, tmp_path / "out")
    labels = np.load(digits / "train" / "labels.npy")
    most = np.bincount(labels).max()
    assert counts.groupby("label")["samples"].sum().tolist() == [most] * 10
    members = read_members(table, labels, 4, repeats=True)
    assert sum(map(len, members)) == 10 * most
    with pytest.raises(UserError, match=r"each of .* samples once"):
        read_members(table, labels, 4)


@given(cases())
def test_contiguous_shards_keep_the_order_of_the_files(case):
    labels, shards, seed, _ = case
    shard = assign(labels, "contiguous", shards, seed)
    assert np.all(np.diff(shard) >= 0)


@pytest.mark.parametrize("scheme", ["iid", "stratified", "dirichlet"])
def test_another_seed_gives_another_partition(scheme):
    labels = np.arange(200) % 10
    found = {assign(labels, scheme, 4, seed, 0.5).tobytes() for seed in (0, 1, 2**32, 2**63 - 1)}
    assert len(found) == 4


def skew(labels, shard):
    """Return the mean over the shards of the share of its commonest class."""
    counts = np.array(
        [np.bincount(labels[shard == number], minlength=10) for number in np.unique(shard)]
    )
    return float((counts.max(axis=1) / counts.sum(axis=1)).mean())


@pytest.mark.parametrize("seed", range(5))
def test_a_small_alpha_skews_classes_and_a_large_one_does_not(seed):
    labels = np.arange(2000) % 10
    small, large = (
        skew(labels, assign(labels, "dirichlet", 10, seed, alpha)) for alpha in (0.01, 1000)
    )
    assert small > 0.5  # the last shards must take what is left
    assert large < 0.2


@pytest.mark.parametrize("alpha", [1e-12, 1e-300, 5e-324, 1e12, 1e300])
def test_dirichlet_ends_at_any_alpha(alpha):
    labels = np.repeat(np.arange(4), [1, 5, 50, 100])
    shard = assign(labels, "dirichlet", 13, 0, alpha)
    assert np.bincount(shard).tolist() == [12] * 13


# A change of these bits is a change of every result that was ever published with them.
@pytest.mark.parametrize(
    ("scheme", "known"),
    [
        ("iid", "ac720c977986310c40598878ea9d2053cc1a11f2311818fc40ff4ea923862225"),
        ("stratified", "1bc6d8b0ae6c8864175bd98ab0c4c2d3a0d575a0f23412d39f094c2f4d527d39"),
        ("contiguous", "585fe53e2e0606cc650abd8e540a4b002f8867982daa1d89e955231357efe657"),
        ("dirichlet", "4291787f90b183c8c772cd2de5bba8038144c13edac8dd4dc49045b57891b55a"),
    ],
)
def test_the_bits_of_a_partition_are_these(scheme, known):
    shard = assign(np.arange(120) % 7, scheme, 8, 42, 0.3)
    assert hashlib.sha256(shard.astype("<i8").tobytes()).hexdigest() == known


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_tables_agree_with_each_other_and_the_labels(tmp_path, write_part, scheme):
    labels = np.arange(103) % 5
    write_part(tmp_path / "train", labels)
    returned = partition(tmp_path, scheme, 4, 7, 0.3, tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / "shards.csv")
    counts = pd.read_csv(tmp_path / "out" / "summary.csv")
    assert list(table) == ["sample", "label", "shard"]
    assert table["sample"].tolist() == list(range(103))
    assert table["label"].tolist() == labels.tolist()
    assert table["shard"].tolist() == assign(labels, scheme, 4, 7, 0.3).tolist()
    assert list(counts) == ["shard", "label", "samples"]
    assert len(counts) == 4 * 5  # empty classes of a shard have a row too
    for row in counts.itertuples():
        members = table[(table["shard"] == row.shard) & (table["label"] == row.label)]
        assert len(members) == row.samples
    assert returned["samples"].tolist() == counts["samples"].tolist()
    for number, ids in enumerate(read_members(tmp_path / "out" / "shards.csv", labels, 4)):
        assert ids.tolist() == table.loc[table["shard"] == number, "sample"].tolist()


def test_more_shards_than_samples_are_refused(tmp_path, write_part, refused):
    write_part(tmp_path / "train", [0, 1, 0])
    with refused("shards", "4", "3 training samples"):
        partition(tmp_path, "iid", 4, 0, 0.5, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_labels_that_are_not_those_of_the_manifest_are_refused(tmp_path, write_part, refused):
    write_part(tmp_path / "train", [0, 1, 0, 1])
    np.save(tmp_path / "train" / "labels.npy", np.array([0, 1, 1, 0]))
    with refused(tmp_path / "train" / "labels.npy", "run `prepare` again"):
        partition(tmp_path, "iid", 2, 0, 0.5, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_edited_table_is_known_from_what_partition_wrote(tmp_path, write_part):
    write_part(tmp_path / "train", [0, 1, 0, 1])
    out = tmp_path / "out"
    partition(tmp_path, "contiguous", 2, 3, 0.5, out)
    record = json.loads((out / "partition.json").read_text())
    assert record == {
        "scheme": "contiguous",
        "shards": 2,
        "seed": 3,
        "alpha": None,
        "labels_sha256": sha256(tmp_path / "train" / "labels.npy"),
        "shards_sha256": sha256(out / "shards.csv"),
    }
    assert not is_edited(out / "shards.csv")
    text = (out / "shards.csv").read_text()
    (out / "shards.csv").write_text(text.replace("1,1,0\n2,0,1", "1,1,1\n2,0,0"))
    assert is_edited(out / "shards.csv")
    partition(tmp_path, "contiguous", 2, 3, 0.5, out)
    assert not is_edited(out / "shards.csv")
    for text in ("", "[]", "{}", "[" * 10**5):
        (out / "partition.json").write_text(text)
        assert is_edited(out / "shards.csv")
    (out / "partition.json").unlink()
    assert is_edited(out / "shards.csv")


def test_no_table_stays_beside_what_is_about_another(tmp_path, write_part, monkeypatch, litter):
    write_part(tmp_path / "train", [0, 1, 0, 1])
    out, names = tmp_path / "out", ["partition.json", "shards.csv", "summary.csv"]
    partition(tmp_path, "contiguous", 2, 0, 0.5, out)
    assert litter(out) == names
    replace = Path.replace
    for count in (0, 1, 2):  # files that are written before a kill
        left = [None] * count

        def kill(self, target, left=left):
            if not left:
                raise KeyboardInterrupt
            left.pop()
            return replace(self, target)

        monkeypatch.setattr(Path, "replace", kill)
        with pytest.raises(KeyboardInterrupt):
            partition(tmp_path, "iid", 2, 0, 0.5, out)
        assert not (out / "shards.csv").exists()
    monkeypatch.undo()
    (out / ".shards.csv-ab12").mkdir()
    (out / ".shards.csv-ab12" / "shards.csv").write_text("half")
    partition(tmp_path, "iid", 2, 0, 0.5, out)
    assert litter(out) == names


FIVES = np.full(4, 5)
GOOD = "sample,label,shard\n0,5,0\n1,5,1\n2,5,0\n3,5,1\n"


def test_members_come_in_ascending_order_from_any_table(tmp_path):
    path = tmp_path / "shards.csv"
    lines = GOOD.splitlines(keepends=True)
    path.write_text(lines[0] + "".join(reversed(lines[1:])))
    assert [ids.tolist() for ids in read_members(path, FIVES, 2)] == [[0, 2], [1, 3]]


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "sample,label\n0,5\n",
        "not a table at all",
        GOOD[:-5],
        GOOD + "3,5,1\n",
        GOOD.replace("3,5,1", "2,5,1"),
        GOOD.replace("3,5,1", "4,5,1"),
        GOOD.replace("3,5,1", "3,5,2"),
        GOOD.replace("3,5,1", "3,5,-1"),
        GOOD.replace(",1\n", ",0\n"),
        GOOD.replace("3,5,1", "3,5,one"),
        GOOD.replace("3,5,1", "3,5,"),
        GOOD.replace("3,5,1", "3,5,0.5"),
        GOOD.replace("3,5,1", '3,5,"1'),
        GOOD.replace("3,5,1", "3,5,\x00\xff"),
        GOOD.replace("3,5,1", f"{10**30},5,1"),
        GOOD.replace("3,5,1", f"3,5,{10**400}"),
    ],
)
def test_a_damaged_table_is_refused(tmp_path, refused, text):
    path = tmp_path / "shards.csv"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    with refused(path):
        read_members(path, FIVES, 2)


def test_a_table_of_other_labels_is_refused(tmp_path, refused):
    path = tmp_path / "shards.csv"
    path.write_text(GOOD)
    with refused(path, "labels", "partition again"):
        read_members(path, np.array([5, 5, 4, 5]), 2)
