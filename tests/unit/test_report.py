"""report: what the table of runs says of strategies."""

import pandas as pd
import pytest

from lockstep.pipeline.record import Segment
from lockstep.pipeline.report import runs
from lockstep.pipeline.report.curves import ranks_over_time


@pytest.fixture
def table():
    rows = [
        ("one", "single", "", "", 0, 1, "a" * 64),
        ("tree", "sync_sgd", "tree", "", 0, 2, "a" * 64),
        ("fast", "sync_sgd", "fast", "", 0, 2, "b" * 64),
        ("once", "local_sgd", "", "0", 0, 2, "c" * 64),
        ("other", "sync_sgd", "tree", "", 1, 2, "d" * 64),
    ]
    columns = ["run", "strategy", "reduction", "sync_every", "seed", "ranks", runs.HASH]
    made = pd.DataFrame(rows, columns=columns).assign(shards=4, loss=0.5, seconds=1.0)
    return made.assign(
        accuracy_last=0.25, accuracy_averaged=0.75, images_per_second=10, bytes_sent=2_500_000
    )


def test_each_run_is_compared_with_single_of_the_same_settings(table):
    inputs = ["strategy", "reduction", "sync_every", "seed", "shards"]
    assert runs.compare_with_single(table, inputs) == ["", "yes", "no", "no", ""]
    page = runs.page_of_runs(table)
    assert "as single?" in page
    assert "<td>yes</td>" in page
    assert "as single?" not in runs.page_of_runs(table[1:])


def test_a_replica_alone_is_told_from_the_mean_of_all(table):
    (line,) = runs.read_replicas(table)
    assert line.startswith("once's last model is the replica of shard 0")
    assert line.index("25.00%") < line.index("4 replicas") < line.index("75.00%")
    assert line in runs.page_of_runs(table)
    assert runs.read_replicas(table.drop(columns="sync_every")) == []


def test_bytes_are_shown_in_megabytes(table):
    page = runs.page_of_runs(table)
    assert "MB sent" in page
    assert '<td class="number">2.50</td>' in page


def test_a_run_says_how_many_ranks_it_had_where_some_were_lost_and_came_back():
    parts = [
        Segment(first_step=first, last_step=first, started="", bytes_sent=[0] * ranks)
        for first, ranks in [(0, 4), (120, 3), (130, 3), (200, 4)]
    ]
    assert ranks_over_time(parts[:1]) == ""
    assert ranks_over_time(parts) == "4 ranks, 3 from step 120 on, 4 from step 200 on"
    many = [part for _ in range(9) for part in parts]
    assert ranks_over_time(many).count("…") == 1
