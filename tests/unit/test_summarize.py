"""summarize: which columns there are."""

import pandas as pd
import pytest

from lockstep.pipeline.config import Run
from lockstep.pipeline.stages.summarize import summarize


@pytest.fixture
def table(tmp_path, write_records):
    """A function that summarizes runs of these settings, and reads the table as the report does."""

    def make(**runs):
        for name, values in runs.items():
            write_records(tmp_path / name, Run(**values))
        summarize([tmp_path / name for name in runs], tmp_path / "summary.csv")
        return pd.read_csv(tmp_path / "summary.csv", keep_default_na=False)

    return make


def test_what_a_strategy_does_not_read_is_no_column(table):
    found = table(a={"sync_every": 3}, b={"stages": 1})
    assert list(found["reduction"]) == ["tree", "tree"]
    assert not {"sync_every", "stages", "pipeline_schedule", "lr"} & set(found.columns)
    assert list(found["bytes_sent"]) == [7, 7]


def test_what_only_some_strategies_read_is_empty_for_the_others(table):
    found = table(
        a={"strategy": "local_sgd", "sync_every": 0},
        b={"strategy": "hybrid", "stages": 2, "lr": 0.1},
        c={"strategy": "ddp"},
    )
    assert list(found["sync_every"]) == ["0", "", ""]
    assert list(found["stages"]) == ["", "2", ""]
    assert list(found["pipeline_schedule"]) == ["", "1f1b", ""]
    assert list(found["lr"]) == [0.01, 0.1, 0.01]
    assert "reduction" not in found


def test_replicas_that_never_met_are_seen_in_a_table_of_their_own(table):
    found = table(a={"strategy": "local_sgd", "sync_every": 0})
    assert list(found["sync_every"]) == [0]
