"""summarize: which columns there are."""

import pandas as pd
import pytest

from lockstep.pipeline.config import Run
from lockstep.pipeline.groups import VALIDATION, choice, for_person, groups
from lockstep.pipeline.kinds import CLASSIFICATION
from lockstep.pipeline.report.runs import page_of_runs
from lockstep.pipeline.stages.summarize import for_terminal, summarize


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


def of_seeds(**more):
    """Return a table of two settings with three seeds each, and of one with a single one."""
    accuracy = [0.90, 0.92, 0.94, 0.95, 0.95, 0.95, 0.99]
    columns = {"run": [f"r{i}" for i in range(7)], "model": "cnn", "strategy": "sync_sgd"}
    columns |= {"ranks": 2, "seed": [0, 1, 2, 0, 1, 2, 0], "lr": [0.1] * 3 + [0.2] * 3 + [0.3]}
    for name in CLASSIFICATION.compared:
        columns |= {f"{name}_last": accuracy, f"{name}_averaged": accuracy}
    columns |= {"majority": 0.5, "loss": 0.1, "images_per_second": 9, "seconds": 1.0}
    columns |= {"peak_memory": 9, "bytes_sent": 7, "model_sha256": [f"{i}" * 64 for i in range(7)]}
    return pd.DataFrame(columns | more)


def test_settings_have_the_mean_and_the_deviation_over_their_seeds():
    found = groups(of_seeds(), CLASSIFICATION)
    assert list(found["lr"]) == [0.1, 0.2, 0.3]
    assert list(found["runs"]) == [3, 3, 1]
    assert found["accuracy_last_mean"].tolist() == pytest.approx([0.92, 0.95, 0.99])
    assert found["accuracy_last_sd"].tolist()[:2] == pytest.approx([0.02, 0.0])
    assert pd.isna(found["accuracy_last_sd"][2])
    assert "model" not in found
    shown = for_person(found, CLASSIFICATION)
    assert shown["accuracy_last"].tolist() == ["92.00% ± 2.00%", "95.00% ± 0.00%", "99.00%"]
    assert "no validation part" in choice(found)
    page = page_of_runs(of_seeds())
    assert "92.00% ± 2.00%" in page
    assert "no validation part" in page


def test_the_best_setting_is_that_of_the_validation_part():
    found = groups(of_seeds(**{VALIDATION: [3, 3, 3, 1, 1, 1, 2.0]}), CLASSIFICATION)
    assert list(found["lr"]) == [0.2, 0.3, 0.1]
    said = "Best by the loss on the validation part: lr 0.2."
    assert choice(found) == f"{said} Of a single seed, nobody knows how far that can be trusted."
    assert choice(found[found["runs"] > 1].reset_index(drop=True)) == said
    close = groups(of_seeds(**{VALIDATION: [3, 1, 2, 3, 2, 1.1, 9]})[:6], CLASSIFICATION)
    assert choice(close).endswith("closer than they spread over seeds: not known to be worse.")
    assert "lr 0.2" in page_of_runs(of_seeds(**{VALIDATION: [3, 3, 3, 1, 1, 1, 2.0]}))
    assert choice(found[:1]) == ""


def test_settings_that_some_runs_do_not_have_are_settings():
    some = {"freeze": ["backbone"] * 3 + [None] * 4, "weights": [None] * 6 + ["w.pth"]}
    found = groups(of_seeds(lr=0.1, **some), CLASSIFICATION)
    assert found["runs"].tolist() == [3, 3, 1]
    assert found["freeze"].tolist() == ["backbone", "", ""]
    assert found["weights"].tolist() == ["", "", "w.pth"]
    best = {VALIDATION: [1, 1, 1, 3, 3, 3, 2.0]}
    found = groups(of_seeds(**some, **best), CLASSIFICATION)
    assert ": lr 0.1, freeze backbone. " in choice(found)
    assert choice(found.rename(columns={"freeze": "class_weights"})).endswith("as well.")


def test_groups_are_written_and_told(table, tmp_path):
    table(**{f"a{seed}": {"seed": seed} for seed in range(2)}, b={"lr": 0.5})
    found = pd.read_csv(tmp_path / "groups.csv")
    assert list(found["runs"]) == [2, 1]
    text = for_terminal(tmp_path / "summary.csv")
    assert " ± " in text
    assert text.endswith("Set dataset.validation_fraction.")
