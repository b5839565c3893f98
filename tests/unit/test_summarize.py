"""summarize: which columns there are."""

import pandas as pd
import pytest

from lockstep.pipeline.config import Run
from lockstep.pipeline.groups import VALIDATION, choice, for_person, groups
from lockstep.pipeline.kinds import CLASSIFICATION
from lockstep.pipeline.report.runs import page_of_runs
from lockstep.pipeline.stages.summarize import WIDTH, for_terminal, summarize
from tests.damage import change_record


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


@pytest.mark.parametrize(("rate", "written"), [(0.4321, 0.432), (14.26, 14.3), (123.6, 124)])
def test_a_speed_has_three_digits_at_least(tmp_path, write_records, rate, written):
    write_records(tmp_path / "a", Run())
    change_record(tmp_path / "a", images_per_second=rate)
    found = summarize([tmp_path / "a"], tmp_path / "summary.csv")
    assert list(found["images_per_second"]) == [written]
    assert f"{written:.2g}" in for_terminal(tmp_path / "summary.csv") or written == 124


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
    assert "no validation part" in choice(of_seeds(), CLASSIFICATION)
    page = page_of_runs(of_seeds())
    assert "92.00% ± 2.00%" in page
    assert "no validation part" in page


def test_the_best_setting_is_that_of_the_validation_part():
    table = of_seeds(**{VALIDATION: [3, 3, 3, 1, 1, 1, 2.0]})
    assert list(groups(table, CLASSIFICATION)["lr"]) == [0.2, 0.3, 0.1]
    said = "Best by the loss on the validation part: runs r3, r4, r5 (lr 0.2)."
    doubt = "Of a single seed, nobody knows how far that can be trusted."
    assert choice(table, CLASSIFICATION) == f"{said} {doubt}"
    assert choice(table[:6], CLASSIFICATION) == said
    close = of_seeds(**{VALIDATION: [3, 1, 2, 3, 2, 1.1, 9]})[:6]
    said = choice(close, CLASSIFICATION)
    near = "The difference to lr 0.2 is smaller than the spread over seeds: it may be as good."
    assert said.endswith(near)
    assert "lr 0.2" in page_of_runs(table)
    assert choice(table[:3], CLASSIFICATION) == ""
    one = of_seeds(**{VALIDATION: [3, 3, 3, 2, 2, 2, 1.0]})
    assert "part: run r6 (lr 0.3). " in choice(one, CLASSIFICATION)


def test_the_best_setting_is_found_where_all_that_differs_are_numbers():
    table = of_seeds(ranks=[1, 1, 1, 2, 2, 2, 2], **{VALIDATION: [3, 3, 3, 1, 1, 1, 2.0]})
    assert "runs r3, r4, r5 (ranks 2, lr 0.2)." in choice(table, CLASSIFICATION)


def test_the_best_run_has_what_it_was_given_and_nothing_that_follows_from_it():
    some = {"strategy": ["local_sgd"] * 3 + ["sync_sgd"] * 4, "sync_every": ["8"] * 3 + [""] * 4}
    some |= {"epochs": [2] * 3 + [5] * 4, "snapshots": [2] * 3 + [3] * 4, "lr": 0.1}
    table = of_seeds(**some, **{VALIDATION: [1, 1, 1, 2, 2, 2, 2.0]})
    assert "r2 (strategy local_sgd, epochs 2). " in choice(table, CLASSIFICATION) + " "
    table["snapshots"] = [1] * 3 + [3] * 4
    assert "epochs 2, snapshots 1)" in choice(table, CLASSIFICATION)


def test_runs_with_the_same_bits_are_no_settings_to_choose_among():
    alike = {"model_sha256": ["a" * 64] * 3 + [f"{i}" * 64 for i in range(4)], "seed": 0}
    alike |= {"lr": 0.1, "ranks": range(1, 8)}
    validated = of_seeds(**alike, **{VALIDATION: [1, 1, 1, 2, 3, 4, 5.0]})
    said = choice(validated, CLASSIFICATION)
    assert ": runs r0, r1, r2 (ranks 1/2/3). " in said
    assert choice(validated[:3], CLASSIFICATION) == ""
    assert choice(of_seeds(**alike)[:3], CLASSIFICATION) == ""


def shown(tmp_path, table):
    table.to_csv(tmp_path / "summary.csv", index=False)
    return for_terminal(tmp_path / "summary.csv")


def test_letters_are_of_runs_that_are_compared(tmp_path):
    apart = of_seeds(lr=[i / 10 for i in range(7)])
    assert "same bits" not in shown(tmp_path, apart)
    assert "same bits" not in shown(tmp_path, apart[:1])
    text = shown(tmp_path, apart.assign(lr=[0, 0, *range(5)], seed=0, ranks=range(7)))
    assert "same bits" in text
    rows = [line.split() for line in text.splitlines()[1:8]]
    assert [row[1][-1] for row in rows] == ["A", "B", "C", *"%%%%"]
    alike = apart.assign(model_sha256="a" * 64)
    assert [line.split()[1] for line in shown(tmp_path, alike).splitlines()[1:8]] == ["A"] * 7


def test_where_classes_are_uneven_balanced_accuracy_is_there_as_well(tmp_path):
    table = of_seeds(balanced_accuracy_last=0.123)
    for smallest, said in ((0.2, True), (0.3, False)):
        text = shown(tmp_path, table.assign(smallest=smallest))
        assert ("balanced" in text.splitlines()[0]) == said
        assert ("12.30%" in text.splitlines()[1]) == said


def test_a_long_name_takes_the_place_of_what_tells_least_and_breaks_at_its_hyphens(tmp_path):
    names = [f"digits-augment_trivial-lr0.00{i}-seed{i}" for i in range(7)]
    text = shown(tmp_path, of_seeds(run=names, lr=[i / 10 for i in range(7)]))
    assert max(map(len, text.splitlines())) <= WIDTH
    assert f"{names[0]}  " in text
    assert " sent" not in text.splitlines()[0]
    longer = [f"{name}-{'x' * 30}-{name}" for name in names]
    text = shown(tmp_path, of_seeds(run=longer, lr=[i / 10 for i in range(7)]))
    assert max(map(len, text.splitlines())) <= WIDTH
    assert f"{names[0]}-" in [line.split(" ")[0] for line in text.splitlines()]


def test_settings_that_some_runs_do_not_have_are_settings():
    some = {"freeze": ["backbone"] * 3 + [None] * 4, "weights": [None] * 6 + ["w.pth"]}
    found = groups(of_seeds(lr=0.1, **some), CLASSIFICATION)
    assert found["runs"].tolist() == [3, 3, 1]
    assert found["freeze"].tolist() == ["backbone", "none", "none"]
    assert found["weights"].tolist() == ["none", "none", "w.pth"]
    best = {VALIDATION: [1, 1, 1, 3, 3, 3, 2.0]}
    table = of_seeds(**some, **best)
    best = ": runs r0, r1, r2 (lr 0.1, freeze backbone, weights none). "
    assert best in choice(table, CLASSIFICATION)
    weighted = table.rename(columns={"freeze": "class_weights"})
    assert choice(weighted, CLASSIFICATION).endswith("as well.")


def test_a_setting_that_is_best_by_the_loss_alone_is_said_to_be(tmp_path):
    losses = {VALIDATION: [1.0] * 3 + [1.2] * 3 + [2.0]}
    there = of_seeds(**losses, validation_accuracy=[0.3] * 3 + [0.6] * 3 + [0.5])
    said = "By accuracy there, lr 0.2 is ahead: 60.00% against 30.00%; a loss also counts how sure"
    assert said in choice(there, CLASSIFICATION)
    assert said in " ".join(shown(tmp_path, there).split())
    assert said in page_of_runs(there)
    single = choice(there[[True, False, False] * 2 + [True]], CLASSIFICATION)
    assert "By accuracy there, r3 is ahead" in single
    alike = of_seeds(**losses, validation_accuracy=[0.6] * 7)
    assert "ahead" not in choice(alike, CLASSIFICATION)


def test_runs_that_differ_in_where_they_ran_are_not_to_be_chosen_among():
    where = {"ranks": [1, 2, 4] * 2 + [1], "strategy": ["sync_sgd"] * 4 + ["ddp"] * 3}
    table = of_seeds(lr=0.1, seed=0, reduction=["tree"] * 4 + [""] * 3, **where)
    assert choice(table, CLASSIFICATION) == ""
    assert "No setting is named best" in choice(table.assign(lr=range(7)), CLASSIFICATION)


def test_who_is_no_better_than_the_largest_class_is_named_by_balanced_accuracy(tmp_path):
    table = of_seeds(accuracy_last=[0.5, 0.9, 0.9, 0.5, 0.6, 0.6, 0.6])
    table = table.assign(chance=1 / 3, smallest=0.3)
    table["balanced_accuracy_last"] = [0.6, 1 / 3, 0.4, 0.2, 0.5, 0.5, 0.5]
    text = shown(tmp_path, table)
    assert "No better than always the largest class: r0, r3." in text
    text = shown(tmp_path, table.assign(smallest=0.1))
    assert "No better than always the largest class, by balanced accuracy: r1, r3." in text
    assert "<b>r1 is no better" in page_of_runs(table.assign(smallest=0.1))
    assert "No better" not in shown(tmp_path, table[4:])


def test_a_line_breaks_between_words_alone(tmp_path):
    names = [f"digits-lr0.03-seed-{i}" for i in range(7)]
    text = shown(tmp_path, of_seeds(run=names, **{VALIDATION: [3, 3, 3, 1, 1, 1, 2.0]}))
    said = text[text.index("Best by") :]
    assert len(said.splitlines()) > 1
    assert not any(line.endswith("-") for line in said.splitlines())


def test_what_a_run_has_not_is_called_none_on_the_terminal(table, tmp_path):
    table(
        **{
            f"{name}{seed}": {"seed": seed, "clip": clip}
            for name, clip in (("a", None), ("b", 0.5))
            for seed in range(2)
        }
    )
    rows = [line.split()[:2] for line in for_terminal(tmp_path / "summary.csv").splitlines()]
    assert ["none", "2"] in rows
    assert ["0.5", "2"] in rows


def test_groups_are_written_and_told(table, tmp_path):
    table(**{f"a{seed}": {"seed": seed} for seed in range(2)}, b={"lr": 0.5})
    found = pd.read_csv(tmp_path / "groups.csv")
    assert list(found["runs"]) == [2, 1]
    summary = pd.read_csv(tmp_path / "summary.csv", keep_default_na=False)
    text = shown(tmp_path, summary.assign(model_sha256=[f"{i}" * 64 for i in range(3)]))
    assert " ± " in text
    assert text.endswith("Set dataset.validation_fraction.")
