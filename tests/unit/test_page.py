"""page: what it reads, what it makes of it, and that no name can do harm."""

import itertools
import json
import re
import time
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from lockstep import progress
from lockstep.pipeline import page
from lockstep.pipeline.cli import main
from lockstep.pipeline.config import Run
from lockstep.pipeline.differences import causes
from lockstep.pipeline.launch import world
from lockstep.pipeline.page.answers import answers
from lockstep.pipeline.page.collect import check_of, collect, read_checks
from lockstep.pipeline.page.facts import title_of
from lockstep.pipeline.page.judge import doubts, holm, interval, p_value, rest, worse
from lockstep.pipeline.page.scaling import scaling_of
from lockstep.pipeline.page.series import pairs_of
from lockstep.pipeline.page.write import as_script, write_page
from lockstep.pipeline.record import read_training
from tests.damage import change_record
from tests.made import (
    DIGITS,
    write_check,
    write_data,
    write_numbers,
    write_progress,
    write_run,
    write_words,
)


class Tags(HTMLParser):
    """The tags of a page with their attributes, and the text outside of scripts and styles."""

    def __init__(self, page):
        super().__init__()
        self.found, self.text, self.inside = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        self.inside = tag

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside not in ("script", "style"):
            self.text.append(data)

    def of(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


def read(results):
    page = (results / "index.html").read_text()
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    return page, Tags(page), json.loads(data[1])


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path / "data", DIGITS)


def test_runs_that_are_done_are_shown_in_full(tmp_path, data):
    results = tmp_path / "results"
    for number, name in enumerate(["one", "two", "other"]):
        write_run(results / name, data, Run(ranks=number % 2 + 1), model=number // 2)
    assert write_page(results, ["one", "two", "other"])
    text, tags, values = read(results)
    said = " ".join(" ".join(tags.text).split())
    assert "3 runs gave 2 different models" in said
    assert "A: one = two" in said
    assert "97.00%" in said
    assert "93.61 to 98.62%" in said.replace("\N{EN DASH}", " to ")  # Wilson's, of 194 of 200
    assert "lockstep launch -n 2 reproduce" in said
    assert "0123456789" not in said
    assert "commit 012345678" in said
    assert [run["name"] for run in values["runs"]] == ["one", "two", "other"]
    assert values["runs"][0]["curves"]["epoch"][-1] == 30
    assert sum(map(sum, values["errors"]["one"]["last"]["matrix"])) == 200
    assert values["errors"]["one"]["last"]["right"] == 194
    assert values["errors"]["one"]["averaged"]["right"] == 195
    assert len(values["errors"]["one"]["last"]["mistakes"]) == 6
    for sample, *_ in values["errors"]["one"]["last"]["mistakes"]:
        assert values["pictures"][str(sample)].startswith("data:image/png;base64,")
    assert not values["refresh"]
    assert "http-equiv" not in text


def test_what_is_not_there_any_more_is_no_picture(tmp_path, data):
    write_run(tmp_path / "results/one", data)
    (data / "manifest.json").unlink()
    write_page(tmp_path / "results")
    _, _, values = read(tmp_path / "results")
    assert values["pictures"] == {}
    assert values["errors"]["one"]["last"]["mistakes"]


def test_a_page_asks_for_nothing_from_elsewhere(tmp_path, data):
    write_run(tmp_path / "results/one", data)
    write_page(tmp_path / "results")
    text, tags, _ = read(tmp_path / "results")
    for _, attributes in tags.found:
        for name in ("src", "href", "action"):
            address = attributes.get(name) or ""
            assert not re.match(r"(\w+:)?//", address), address
    assert "@import" not in text
    assert not re.search(r"url\(", text)


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</script><b>",
    "{{ 7*7 }}",
]


def test_names_are_never_markup(tmp_path):
    classes = [*HOSTILE, "\u2028", "__proto__", "NA", "01"]
    data = write_data(tmp_path / "data", classes)
    names = [name.replace("/", "\\") for name in HOSTILE] + ["__proto__", "a b&c"]
    for number, name in enumerate(names):
        write_run(tmp_path / "results" / name, data, model=number, wrong=40)
    write_progress(tmp_path / "results" / "<i>slow", time.time())
    write_page(tmp_path / "results")
    _, tags, values = read(tmp_path / "results")
    assert len(tags.of("script")) == 2
    assert tags.of("img") == tags.of("i") == []
    assert not any(name.startswith("on") for _, attributes in tags.found for name in attributes)
    said = "".join(tags.text)
    for name in [*names, "<i>slow"]:
        assert name in said
    assert sorted(run["name"] for run in values["runs"]) == sorted([*names, "<i>slow"])
    assert values["classes"] == classes


def test_json_in_a_script_ends_no_script():
    text = as_script({"</script>": "<!--<script>\u2028&"})
    assert not set(text) & set("<>&\u2028")
    assert json.loads(text) == {"</script>": "<!--<script>\u2028&"}


def test_runs_that_go_on_are_shown_as_far_as_they_are(tmp_path, data):
    results, now = tmp_path / "results", time.time()
    write_run(results / "done", data)
    write_progress(results / "going", now)
    write_progress(results / "silent", now - 1000)
    write_progress(results / "halted", now, state="stopped")
    assert not write_page(results, ["done", "going", "silent", "halted", "later"], live=True)
    text, tags, values = read(results)
    states = {one.name: one.state for one in collect(results, ["going", "silent", "halted"])}
    assert states == {"going": "training", "silent": "stopped", "halted": "stopped"}
    shown = " ".join(" ".join(tags.text).split())
    for said in ("epoch 3 of 9", "no longer running", "waiting", "7 s"):
        assert said in shown
    assert values["refresh"] == 10
    assert values["runs"][1]["curves"]["loss"] == pytest.approx([1, 0.5, 0.33333], rel=1e-4)
    assert 'http-equiv="refresh"' in text
    assert write_page(results, ["done"], live=True)  # all is there: it does not come again
    assert not read(results)[2]["refresh"]


def test_a_page_is_written_while_runs_go_on_and_for_the_last_time_without_haste(
    tmp_path, data, monkeypatch
):
    monkeypatch.setattr(page, "EVERY", 0.05)
    results = tmp_path / "results"
    live = page.Live(results, ["one", "two"])
    live.start()
    time.sleep(0.2)
    assert not results.exists()
    write_progress(results / "one", time.time())
    end = time.monotonic() + 30
    while not (results / "index.html").exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert 'http-equiv="refresh"' in (results / "index.html").read_text()
    write_run(tmp_path / "made", data)
    for path in (tmp_path / "made").iterdir():
        path.rename(results / "one" / path.name)
    live.stop()
    text, _, values = read(results)
    assert 'http-equiv="refresh"' not in text
    assert list(values["errors"]) == ["one"]
    page.Live(results, ["one"]).stop()  # it never began


def test_progress_may_be_torn_or_lack_anything(tmp_path):
    path = tmp_path / "progress.jsonl"
    path.write_bytes(b'{"loss": NaN, "epoch": 1, "event": "epoch"}\n[]\n\n\xff\n{"state": "trai')
    (only,) = progress.read(tmp_path).epochs
    assert only["epoch"] == 1
    for line in ("{}", '{"epoch": "x", "event": "epoch", "loss": [1]}', '{"steps": 0, "step": 1}'):
        (tmp_path / "results/odd").mkdir(parents=True, exist_ok=True)
        (tmp_path / "results/odd/progress.jsonl").write_text(line + "\n")
        assert not write_page(tmp_path / "results", live=True)
    assert progress.read(tmp_path / "none").now == {}


def test_a_damaged_run_says_so_and_the_others_are_shown(tmp_path, data):
    for name in ("good", "bad"):
        write_run(tmp_path / "results" / name, data)
    path = tmp_path / "results/bad/train.json"
    path.write_text(path.read_text().replace('"steps": 60', '"steps": 61'))
    write_page(tmp_path / "results")
    text, _, values = read(tmp_path / "results")
    assert "changed after it was written" in text
    assert list(values["errors"]) == ["good"]


def test_another_table_is_said_to_be_one(tmp_path, write_records):
    (tmp_path / "results").mkdir()
    write_records(tmp_path / "results/odd", Run())
    assert write_page(tmp_path / "results")
    assert (
        "predictions.csv: no column sample; run `evaluate` again" in read(tmp_path / "results")[0]
    )


def test_no_run_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["page", str(tmp_path)])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"lockstep page: {tmp_path}: no run is in it")


def test_who_follows_runs_that_are_done_waits_for_nothing(tmp_path, data, capsys):
    write_run(tmp_path / "results/one", data)
    main(["page", str(tmp_path / "results"), "--follow"])
    assert capsys.readouterr().out == f"{tmp_path / 'results/index.html'}\n"
    assert not read(tmp_path / "results")[2]["refresh"]


def test_numbers_have_intervals_and_their_largest_errors(tmp_path):
    for model, off in enumerate((0.1, 0.1, 2.0)):
        write_numbers(tmp_path / f"results/r{model}", tmp_path / "data", model, off)
    assert write_page(tmp_path / "results")
    found = collect(tmp_path / "results", None)
    low, high = interval(found[0], "last")
    assert low < found[0].metrics.last.rmse < high
    (good,) = [one for one in answers(found, {}) if one["question"] == "How good?"]
    # An error without a scale has R² beside it, in the answer and in the table.
    r2 = [f"R² {one.metrics.last.r2:.4g}" for one in found]
    assert f"({r2[2]}) on 50 samples" in good["said"]
    text, tags, _ = read(tmp_path / "results")
    assert all(said in " ".join(tags.text) for said in r2)
    assert "variance of the test set" in text
    assert "Shown to be worse than" in " ".join(good["more"])
    assert "r2" in good["more"][0]
    _, _, values = read(tmp_path / "results")
    errors = [abs(row[4]) for row in values["errors"]["r0"]["last"]["largest"]]
    assert errors == sorted(errors, reverse=True)
    assert len(errors) == 24


def test_of_a_language_there_is_an_interval_and_no_test(tmp_path):
    for model in range(2):
        write_words(tmp_path / f"results/r{model}", tmp_path / "data", model)
    assert write_page(tmp_path / "results")
    text, _, values = read(tmp_path / "results")
    (good, *_) = answers(collect(tmp_path / "results", None), {})
    assert good["said"] == "Perplexity 1.649 on the test set"
    assert good["more"] == [
        "The table has the interval of each.",
        "No test of ties: nothing is recorded of single sequences.",
    ]
    half = 1.96 * (0.5 * (40 / 39) ** 0.5 / 4) / 40**0.5  # of 40 sequences, of 4 tokens each
    ends = f"{np.exp(0.5 - half):.4g}\N{EN DASH}{np.exp(0.5 + half):.4g}"
    assert ends in text
    assert "taken for independent" in text
    assert "McNemar" not in text
    assert values["errors"] == {}
    assert values["runs"][1]["curves"]["perplexity"][-1] == pytest.approx(np.exp(0.5), rel=1e-4)


def test_a_hundred_runs_are_a_small_page_and_a_quick_one(tmp_path, data):
    names = [f"run-{number:03}" for number in range(100)]
    for number, name in enumerate(names):
        run = Run(lr=0.001 * (1 + number % 10), seed=number // 10, ranks=1 + number % 2)
        write_run(tmp_path / "results" / name, data, run, number // 2, 5 + number % 3, True)
    began = time.monotonic()
    write_page(tmp_path / "results", names)
    assert time.monotonic() - began < 30
    text, tags, values = read(tmp_path / "results")
    pictures = sum(map(len, values["pictures"].values()))
    assert len(text) - pictures < 2_000_000
    assert pictures < 1_000_000
    assert len(tags.of("tr")) > 200
    assert len(values["diff"]["pairs"]) == 99


def test_pairs_are_what_diff_says(tmp_path, data, capsys):
    results = tmp_path / "results"
    write_run(results / "a", data, Run(lr=0.5))
    write_run(results / "b", data, Run(lr=0.25, ranks=2), model=1)
    assert write_page(results)
    pair = pairs_of(collect(results, None))["pairs"]["0 1"]
    with pytest.raises(SystemExit):
        main(["diff", str(results / "a"), str(results / "b")])
    said = capsys.readouterr().out
    for title, name, first, second in pair["causes"]:
        assert f"{title:15}{name}: {first} | {second}" in said
    assert f"history: {pair['begins']}" in said
    assert ["configuration", "lr", "0.5", "0.25"] in [[*one] for one in pair["causes"]]
    assert pair["begins"].startswith("from epoch 1 on: loss is ")
    for name in pair["different"]:
        assert f"{name}: different" in said


def test_ties_are_ties(tmp_path, data):
    results = tmp_path / "results"
    for number, wrong in enumerate((6, 7, 60)):
        write_run(results / f"r{number}", data, model=number, wrong=wrong)
    found = collect(results, ["r0", "r1"])
    assert answers(found, {})[0]["said"].startswith("A tie")
    (good, *_) = answers(collect(results, ["r0", "r1", "r2"]), {})
    assert good["said"].startswith("Not all alike")
    assert good["more"][0].startswith("Shown to be worse than r0: r2 (McNemar's")
    assert "Tied with it: r1." in good["more"]


def test_p_values_are_the_exact_ones(tmp_path, data):
    write_run(tmp_path / "results/a", data)
    kind = collect(tmp_path / "results", None)[0].kind
    first, second = np.zeros(20), np.zeros(20)
    first[:5] = 1
    assert p_value(first, second, kind) == pytest.approx(2 * 0.5**5)
    assert p_value(first, first, kind) == 1
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx(
        {"a": 0.03, "c": 0.06, "b": 0.06}
    )


def how_good(results):
    (answer, *_) = answers(collect(results, None), {})
    assert answer["question"] == "How good?"
    return answer["said"], " ".join(answer["more"])


def test_settings_are_ranked_by_the_validation_part_and_not_by_the_test_set(tmp_path, data):
    results = tmp_path / "results"
    for lr, wrong, loss in ((0.1, 20, 0.2), (0.2, 4, 0.3), (0.3, 30, 0.9)):
        for seed in range(2):
            run = Run(lr=lr, seed=seed)
            name, apart = results / f"{lr}-{seed}", seed / 100
            write_run(name, data, run, round(100 * lr) + seed, wrong + seed, True, loss + apart)
    said, more = how_good(results)
    # The mean of 180 and 179 of 200, and their deviation: lr 0.2 is better on the test set alone.
    start = "Best by validation is lr 0.1: accuracy 89.75% ± 0.35% on 200 images"
    assert said.startswith(start)
    ranked = "lr 0.1 (0.205 ± 0.007071), then lr 0.2 (0.305 ± 0.007071)."
    assert f"Ranked by the loss on the validation part: {ranked}" in more
    assert "may be as good" not in more
    assert "98" not in said + more  # nothing is said of what others do with the test set
    assert write_page(results)
    text, tags, _ = read(results)
    titles = [" ".join(text.split()) for text in tags.text]
    assert titles.index("validation loss") < titles.index("accuracy, last")
    assert '<tr class="best"><td>0.1 <span class="mark">best</span></td>' in text
    assert text.count('<tr class="best">') == 1
    assert "A tie" not in titles
    assert "the best by the loss on the validation part first" in " ".join(titles)


def test_that_the_next_setting_may_be_as_good_is_said_of_a_best_one_on_several_ranks(
    tmp_path, data
):
    results = tmp_path / "results"
    for lr, loss in ((0.1, 0.2), (0.2, 0.21)):
        for seed, ranks in itertools.product(range(3), (1, 2)):
            run = Run(lr=lr, seed=seed, ranks=ranks)
            model, apart = round(100 * lr) + seed, seed / 10  # the same bits on 1 and 2 ranks
            name = results / f"{lr}-{seed}-{ranks}"
            write_run(name, data, run, model, 4, True, loss + apart)
    assert "it may be as good" in how_good(results)[1]


def test_of_single_runs_the_best_by_validation_is_named_with_its_interval(tmp_path, data):
    results = tmp_path / "results"
    write_run(results / "poor", data, Run(lr=0.1), 0, 2, True, 0.4)
    write_run(results / "good", data, Run(lr=0.2), 1, 6, True, 0.3)
    said, more = how_good(results)
    assert said.startswith("Best by validation is good: accuracy 97.00% on 200 images")
    assert "95 % interval: 93.61% to 98.62%." in more
    assert "good (0.3), then poor (0.4)." in more
    write_run(results / "same", data, Run(lr=0.3), 1, 6, True, 0.3)
    assert how_good(results)[0].startswith("Best by validation are good, same: accuracy 97.00%")
    assert write_page(results)
    assert "runs good, same (lr 0.2/0.3)." in read(results)[0]


def test_where_sums_depend_on_it_the_backend_is_among_what_differs(tmp_path, data):
    for strategy in ("ddp", "sync_sgd"):
        folder = tmp_path / strategy
        for name, backend in (("a", "gloo"), ("b", "mpi4py")):
            write_run(folder / name, data, Run(strategy=strategy, ranks=2))
            change_record(folder / name, backend=backend)
        (first, second) = (read_training(folder / name) for name in "ab")
        found = causes(first, second)
        assert found == ([("circumstances", "backend", "gloo", "mpi4py")] * (strategy == "ddp"))


def test_runs_on_other_data_have_no_pictures_and_other_classes(tmp_path, data):
    results = tmp_path / "results"
    other = write_data(tmp_path / "other", list("abcdefghij"), side=9)
    write_run(results / "first", data)
    write_run(results / "second", other, model=1, wrong=9)
    write_page(results)
    _, _, values = read(results)
    assert values["classes"] == DIGITS
    assert values["other_classes"] == {"second": list("abcdefghij")}
    mistakes = {name: of["last"]["mistakes"] for name, of in values["errors"].items()}
    shown = {int(sample) for sample in values["pictures"]}
    own = values["errors"]["first"]
    own = {sample for model in own.values() for sample, *_ in model["mistakes"]}
    assert shown == own
    assert len(mistakes["second"]) == 9
    assert worse(collect(results, None)) is None  # these are other samples


def test_the_mean_of_fewer_epochs_than_asked_for_is_called_so(tmp_path, data):
    write_run(tmp_path / "results/a", data, Run(snapshots=10))
    names = {f"epoch-000{epoch}.safetensors": "0" * 64 for epoch in (1, 2, 3)}
    change_record(tmp_path / "results/a", snapshots=names)
    assert title_of(collect(tmp_path / "results", None)[0], "averaged") == "mean of the last 3"


def test_runs_that_differ_in_their_seed_alone_are_one_setting(tmp_path, data):
    for seed in range(2):
        write_run(tmp_path / f"results/{seed}", data, Run(seed=seed), seed, 6 + seed, True, 0.3)
    said, more = how_good(tmp_path / "results")
    assert said.startswith("Accuracy 96.75% ± 0.35% on 200 images")
    assert more == "Mean ± standard deviation over 2 seeds."


def test_one_run_has_no_letter_and_is_compared_with_none(tmp_path, data):
    results = tmp_path / "results"
    write_run(results / "a", data)
    write_page(results)
    _, tags, _ = read(results)
    assert not [one for one in tags.of("span") if "chip" in (one.get("class") or "")]
    assert "bits" not in [text.strip() for text in tags.text]
    assert "Which bits agree?" not in " ".join(tags.text)
    assert "reproduce" in " ".join(tags.text)
    write_run(results / "b", data)
    write_page(results)
    assert [one for one in read(results)[1].of("span") if "chip" in (one.get("class") or "")]


def test_runs_of_one_doubt_are_counted_and_a_few_of_them_named(tmp_path, data):
    results, names = tmp_path / "results", "abcde"
    for number, name in enumerate(names):
        run = Run(ranks=1 + number // 4)
        write_run(results / name, data, run)
        write_check(results, run, load=3 + number / 10)

    def doubted():
        found = collect(results, names)
        (speeds,) = [one for one in answers(found, read_checks(results)) if "spee" in one["to"]]
        return " ".join(speeds["more"])

    write_check(results, Run(ranks=1), load=3.9)
    assert "Cores were busy before the runs began: all 5 runs." in doubted()
    write_check(results, Run(ranks=2), load=0)
    assert "Cores were busy before the runs began: 4 of 5: a, b, c and 1 more." in doubted()


@pytest.mark.parametrize(
    ("losses", "verdict"),
    [
        ([2, 1, 0.5, 0.2, 0.1, 0.05, 0.03, 0.02, 0.019, 0.018], "yes"),
        ([10, 9, 8, 7, 6, 5, 4, 3, 2, 1], "no"),
        ([2, 1, float("nan"), 1, 1, 1], "diverged"),
        ([1, 2, 3, 4, 5, 6], "diverged"),
        ([1, 0.5], "short"),
    ],
)
def test_whether_a_loss_has_come_to_rest(losses, verdict):
    assert rest(pd.DataFrame({"loss": losses}))[0] == verdict
    assert rest(pd.DataFrame({"loss": losses[::-1], "validation_loss": losses}))[0] == verdict


def test_a_learning_rate_that_falls_to_0_says_nothing_of_a_longer_training(tmp_path, data):
    losses = pd.DataFrame({"loss": [2, 1, 0.5, 0.2, 0.1, 0.05, 0.03, 0.02, 0.019, 0.018]})
    verdict, why = rest(losses, "onecycle")
    assert verdict == "flat"
    assert "onecycle has the learning rate fall to 0" in why
    assert rest(losses[:6], "onecycle")[0] == "no"
    results = tmp_path / "results"
    write_run(results / "a", data, Run(schedule="onecycle"))
    write_run(results / "b", data, Run(schedule="cosine"))
    write_run(results / "c", data, Run(schedule="constant"))

    def converged(names):
        found = answers(collect(results, names), {})
        (answer,) = [one for one in found if one["question"] == "Converged?"]
        return answer["said"], answer["mood"], " ".join(answer["more"])

    assert converged("a")[:2] == ("Flat, as the learning rate fell to 0", "plain")
    assert "The training loss fell by" in converged("a")[2]
    assert converged("c")[:2] == ("Yes: at rest", "good")
    assert "flattens" not in converged("c")[2]
    assert converged("ab")[0] == "Flat, as the learning rate fell to 0 in every run"
    said, _, more = converged("abc")
    assert said == "2 flat, as the learning rate fell to 0, 1 at rest"
    assert "By the training loss" in more
    assert "flattens any loss" in more


def test_a_validation_loss_that_rises_is_past_its_lowest():
    rising = [2, 1, 0.5, 0.6, 0.7, 0.8, 0.9]
    verdict, why = rest(pd.DataFrame({"loss": rising[::-1], "validation_loss": rising}))
    assert verdict == "past"
    assert "lowest in epoch 3" in why


def test_a_run_that_kept_its_best_epoch_is_not_warned_of_the_others(tmp_path, data):
    results = tmp_path / "results"
    for seed in range(2):
        run = Run(seed=seed, schedule="constant")
        write_run(results / f"past{seed}", data, run, seed, validated=True)
        kept = run.model_copy(update={"keep": "best"})
        write_run(results / f"kept{seed}", data, kept, 2 + seed, validated=True, best=20)

    def converged(*names):
        found = answers(collect(results, names), {})
        (answer,) = [one for one in found if one["question"] == "Converged?"]
        return answer["said"], answer["mood"], " ".join(answer["more"])

    cure = "With keep: best the epoch with the lowest one is the result."
    said, mood, more = converged("past0", "past1", "kept0")
    assert (said, mood) == ("2 past their lowest validation loss, 1 kept its best epoch", "warn")
    assert cure in more
    assert converged("past0")[0] == "Past its lowest validation loss"
    said, mood, more = converged("kept0", "kept1")
    assert (said, mood) == ("Kept its best epoch in every run", "good")
    assert cure not in more
    write_page(results, ["kept0", "kept1"])
    assert "accuracy, best epoch" in [text.strip() for text in read(results)[1].text]
    write_page(results, ["past0", "kept1"])
    assert "accuracy, last" in [text.strip() for text in read(results)[1].text]


def test_a_setting_that_a_run_has_not_is_called_none(tmp_path, data):
    results = tmp_path / "results"
    for number in range(4):
        run = Run(seed=number % 2, clip=0.5 if number < 2 else None)
        write_run(results / f"{number}", data, run, number, 6, True, 0.5 - 0.1 * (number // 2))
    said, more = how_good(results)
    assert said.startswith("Best by validation is clip none: accuracy")
    assert "clip none (0.4 ± 0), then clip 0.5 (0.5 ± 0)." in more
    write_page(results)
    assert '<td>none <span class="mark">best</span></td>' in read(results)[0]


def test_balanced_accuracy_is_a_column_where_classes_are_uneven(tmp_path, data):
    def titles(data, results):
        write_run(results / "a", data)
        write_page(results)
        return [text.strip() for text in read(results)[1].text]

    uneven = write_data(tmp_path / "uneven", ["a", "b"], shares=[0.9, 0.1])
    even = write_data(tmp_path / "even", ["a", "b"])
    assert "balanced accuracy, last" in titles(uneven, tmp_path / "first")
    assert "balanced accuracy, last" not in titles(even, tmp_path / "second")


def test_what_says_nothing_is_left_out(tmp_path, data):
    results = tmp_path / "results"
    write_run(results / "a", data, sent=0)
    write_page(results)
    titles = [text.strip() for text in read(results)[1].text]
    assert "MB sent" not in titles
    assert "peak MB" in titles


def test_runs_that_learned_nothing_do_not_make_the_axis_of_the_others_long(tmp_path, data):
    results = tmp_path / "results"
    write_run(results / "good", data, model=0, wrong=6)
    write_run(results / "better", data, model=1, wrong=4)
    write_run(results / "poor", data, model=2, wrong=200)
    write_page(results)
    drawn = read(results)[1].of("circle")
    assert len(drawn) == 2 * 2  # of both models of the two that learned
    places = [float(one["cx"]) for one in drawn]
    assert max(places) - min(places) > 10  # of 96; of the whole axis they would take 1


def test_a_speed_is_doubted_where_cores_were_too_few_or_busy(tmp_path, data):
    results, run = tmp_path / "results", Run(ranks=2)
    write_run(results / "a", data, run)
    (found,) = collect(results, None)

    def doubted(load, cores):
        write_check(results, run, load, cores)
        return doubts(found, check_of(found, read_checks(results)))

    assert doubted(0.1, 2) == []
    assert doubted(1.5, 2) == ["a load of 1.5 on 2 cores before it began"]
    assert doubted(0.1, 1) == ["2 threads on 1 cores"]
    (path,) = (results / "check").glob("*.json")
    for damage in ("{", "{}", path.read_text().replace('"cores": 1', '"cores": 0')):
        path.write_text(damage)
        assert doubts(found, check_of(found, read_checks(results)))[0].startswith("the load is not")
        assert write_page(results)


def test_ranks_are_compared_with_one_of_the_same_batch_and_of_the_same_share(tmp_path, data):
    results = tmp_path / "results"
    runs = {
        "slow": (Run(strategy="single", ranks=1), 900.0),
        "alone": (Run(strategy="single", ranks=1), 1000.0),
        "half": (Run(strategy="single", ranks=1, batch=64, shards=2), 800.0),
        "two": (Run(ranks=2), 1900.0),
        "other": (Run(ranks=2, model="linear"), 5000.0),
    }
    for name, (run, _) in runs.items():
        write_run(results / name, data, run)
    found = [
        replace(one, history=one.history.assign(images_per_second=runs[one.name][1]))
        for one in collect(results, runs)
    ]
    strong, weak = scaling_of(results, found)
    assert [(row["name"], row["how"], row["alone"]) for row in (strong, weak)] == [
        ("two", "strong", "alone"),
        ("two", "weak", "half"),
    ]
    assert strong["efficiency"] == pytest.approx([0.95] * 3)
    assert weak["speedup"] == pytest.approx(1900 / 800)
    assert strong["communication"] == pytest.approx(0.25)
    assert strong["idle"] == pytest.approx(0.1)
    assert strong["predicted"] is None  # nobody has measured an all-reduce

    write_run(results / "gpu", data, Run(strategy="single", ranks=1))
    change_record(results / "gpu", ranks=[{"processor": "another", "device": "cuda"}])
    fast = replace(collect(results, {"gpu": None})[0])
    fast = replace(fast, history=fast.history.assign(images_per_second=9000.0))
    assert scaling_of(results, [*found, fast])[0]["alone"] == "alone"

    training = found[3].training
    sizes = np.array([2**k for k in range(3, 25, 3)])
    table = pd.DataFrame({"operation": "all_reduce", "backend": training.backend, "bytes": sizes})
    table["median_us"] = 2 * 100 + sizes / 1e9 * 1e6
    write_check(results, runs["two"][0])
    csv = (results / "check" / f"{world(runs['two'][0])}.json").with_suffix(".csv")
    table.to_csv(csv, index=False)
    row = scaling_of(results, found)[0]
    each = found[1].training.steps / len(found[1].history)
    expected = 128 / (0.75 / each / 2 + 200e-6 + 4 * training.parameters / 1e9)
    assert row["predicted"] == pytest.approx([expected] * 3, rel=0.02)
    table["median_us"] = np.where(np.arange(len(sizes)) % 2, 10.0, 10_000.0)  # no fit can meet them
    table.to_csv(csv, index=False)
    assert scaling_of(results, found)[0]["predicted"] is None
    write_page(results)
    said = " ".join(" ".join(read(results)[1].text).split())
    assert "More ranks, measured against one" in said
