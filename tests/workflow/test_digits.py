"""The default experiment, from nothing to the report, and what reruns when something changes."""

import json
import shutil
import sys

import pandas as pd
import pytest

from tests.conftest import run, thorough


@pytest.fixture(scope="module")
def finished(make_workspace):
    workspace = make_workspace("digits")
    command = [sys.executable, "-m", "snakemake", "--cores", "all"]
    done = run(command, workspace.folder, timeout=550)
    assert done.returncode == 0, done.stdout + done.stderr
    workspace.said = done.stdout + done.stderr
    return workspace


@pytest.fixture
def restored(finished):
    """Give the finished workspace to a test that changes a file, and put the file back."""
    kept = {}

    def change(name: str, old: str, new: str):
        path = finished.folder / name
        text = kept.setdefault(path, path.read_text())
        assert old in text
        path.write_text(text.replace(old, new))
        return finished

    yield change
    for path, text in kept.items():
        path.write_text(text)


def test_the_default_run_ends_with_a_table_and_a_report(finished):
    results = finished.folder / "results/config"
    summary = pd.read_csv(results / "summary.csv")
    assert list(summary["run"]) == ["digits"]
    assert summary["accuracy_last"][0] >= 0.97
    assert summary["accuracy_averaged"][0] >= 0.97
    assert summary["ranks"][0] == 2
    assert "averaged" in finished.said
    assert "results/config/report.html" in finished.said
    assert "results/config/index.html" in finished.said
    page = (results / "report.html").read_text()
    figures = ["curves.svg", "confusion.svg", "shards.svg", "time.svg", "scaling.svg"]
    figures += ["runs.html", "communication.html", "latency.svg", "bandwidth.svg"]
    for figure in figures:
        assert figure in page
    expected = {"model.safetensors", "averaged.safetensors", "history.csv", "train.json"}
    expected |= {"metrics.json", "predictions.csv", "confusion.csv", "snapshots"}
    assert expected <= {path.name for path in (results / "digits").iterdir()}
    assert not [path for path in finished.folder.rglob(".*-*") if path.parent.name == "digits"]


def test_the_records_say_how_the_result_came_about(finished):
    record = json.loads((finished.folder / "results/config/digits/train.json").read_text())
    manifest = json.loads((finished.folder / "data/digits/manifest.json").read_text())
    assert record["configuration"]["seed"] == 0
    assert record["data_sha256"] == manifest["sha256"]
    assert record["launcher"] == "mpirun"
    assert [rank["rank"] for rank in record["ranks"]] == [0, 1]
    assert {"python", "torch", "numpy", "mpi4py", "snakemake"} <= set(record["versions"])
    history = pd.read_csv(finished.folder / "results/config/digits/history.csv")
    assert list(history["epoch"]) == list(range(1, record["configuration"]["epochs"] + 1))
    parts = [f"{part}_seconds" for part in ("input", "compute", "communication")]
    assert history[parts].sum(axis=1).to_numpy() == pytest.approx(history["seconds"].to_numpy())


def test_every_rule_leaves_a_log_and_a_benchmark(finished):
    expected = {
        "summarize",
        "draw_summary",
        "report",
        "page",
        "check/2x1-auto",
        "draw_launch/2x1-auto",
    }
    expected |= {"partition/digits-stratified-4-seed0"}
    rules = ("download", "prepare", "train", "average", "evaluate", "draw", "scale")
    expected |= {f"{rule}/digits" for rule in rules}
    for folder, ending in (("logs/config", ".log"), ("logs/config/benchmarks", ".tsv")):
        folder = finished.folder / folder
        found = {path.relative_to(folder) for path in folder.rglob(f"*{ending}")}
        assert {str(path.with_suffix("")) for path in found} == expected


def test_a_second_time_there_is_nothing_to_be_done(finished):
    done = finished.snakemake()
    assert done.returncode == 0
    assert "Nothing to be done" in done.stdout + done.stderr


def test_every_stage_is_a_target(finished):
    stages = ["download", "prepare", "partition", "check", "train", "average", "evaluate"]
    assert finished.jobs(*stages, "summarize", "report") == {}


def test_a_comment_reruns_nothing(restored):
    workspace = restored(
        "src/lockstep/pipeline/stages/train.py", "import time", "# why\nimport time"
    )
    assert workspace.jobs() == {}


def test_a_comment_in_the_configuration_reruns_nothing(restored):
    assert restored("config/config.yaml", "  lr:", "  # faster\n  lr:").jobs() == {}


def test_a_learning_rate_reruns_train_and_what_follows(restored):
    jobs = restored("config/config.yaml", "lr: 0.01", "lr: 0.02").jobs()
    assert jobs == dict.fromkeys(
        [
            *("train_run", "average_run", "evaluate_run", "summarize"),
            *("draw_run", "scale_run", "draw_summary", "report", "page"),
        ],
        1,
    )


def test_a_longer_check_reruns_no_training(restored):
    jobs = restored("config/config.yaml", "check_seconds: 5.0", "check_seconds: 6.0").jobs()
    rules = ["check_world", "draw_launch", "scale_run", "draw_summary", "report", "page"]
    assert jobs == dict.fromkeys(rules, 1)


def test_a_model_reruns_train_and_the_check_of_the_model(restored):
    jobs = restored("config/config.yaml", "model: cnn", "model: linear").jobs()
    assert jobs == dict.fromkeys(
        [
            *("check_world", "train_run", "average_run", "evaluate_run", "summarize"),
            *("draw_run", "draw_launch", "scale_run", "draw_summary", "report", "page"),
        ],
        1,
    )


@pytest.mark.parametrize(
    ("product", "rule"),
    [
        ("results/config/digits/model.safetensors", "train_run"),
        ("results/config/digits/predictions.csv", "evaluate_run"),
        thorough("results/config/digits/figures/time.svg", "draw_run"),
        thorough("results/config/check/2x1-auto.json", "check_world"),
        thorough("results/config/check/2x1-auto.csv", "check_world"),
        thorough("results/config/digits/figures/scaling.svg", "scale_run"),
        thorough("results/config/figures/2x1-auto/communication.html", "draw_launch"),
        thorough("data/digits/manifest.json", "prepare"),
    ],
)
def test_a_product_that_was_removed_is_made_again(finished, product, rule):
    path = finished.folder / product
    path.rename(path.with_suffix(".away"))
    try:
        assert finished.jobs()[rule] == 1
    finally:
        path.with_suffix(".away").rename(path)


def test_a_record_that_was_removed_is_missed_by_what_lies_behind(finished):
    path = finished.folder / "results/config/digits/train.json"
    path.rename(path.with_suffix(".away"))
    try:
        assert finished.jobs("evaluate")["train_run"] == 1
    finally:
        path.with_suffix(".away").rename(path)


def test_code_reruns_the_stages_that_run_it(restored):
    jobs = restored(
        "src/lockstep/pipeline/stages/summarize.py", "table = pd", "other = 1\n    table = pd"
    ).jobs()
    assert jobs == dict.fromkeys(["summarize", "draw_summary", "report", "page"], 1)


def test_another_look_reruns_the_page_alone(restored):
    style = "src/lockstep/pipeline/page/templates/page.css"
    assert restored(style, "--page: #f7f8f9", "--page: #ffffff").jobs() == {"page": 1}


def test_a_mirror_reruns_nothing(restored):
    workspace = restored("config/config.yaml", "mirror: null", "mirror: http://127.0.0.1:9")
    assert workspace.jobs() == {}


def test_another_rhythm_of_checkpoints_reruns_nothing(restored):
    workspace = restored("config/config.yaml", "checkpoint_every: 1 min", "checkpoint_every: 1 h")
    assert workspace.jobs() == {}


def test_another_run_leaves_the_first_alone(restored):
    workspace = restored("config/runs.tsv", "digits\t2\t1\n", "digits\t2\t1\none\t2\t0\n")
    jobs = workspace.jobs("evaluate")
    assert jobs["train_run"] == jobs["evaluate_run"] == 1
    assert "download" not in jobs
    assert "prepare" not in jobs


def test_a_browser_shows_the_report(finished, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("there is no chromium on the PATH")
    quiet = ["headless", "no-sandbox", "disable-gpu", "no-first-run", "disable-quic"]
    quiet += ["disable-background-networking", "disable-component-update", "disable-sync"]
    pages = {
        "index.html": [
            "Converged?",
            "lockstep launch -n 2 reproduce",
            "data:image/png",
            "report.html",
        ],
        "report.html": ["Lockstep", "Statistics", "Summary", "Runs", "Machine", "train_run"],
        "figures/runs.html": ["digits", "sync_sgd", "No two of these runs differ only in"],
        "figures/2x1-auto/communication.html": ["2 ranks on 1 host", "gloo", "all_reduce"],
        "figures/machine.html": ["mpirun", "Open MPI", "gloo", "21,840"],
    }
    for page, words in pages.items():
        done = run(
            [
                browser,
                *(f"--{flag}" for flag in quiet),
                f"--user-data-dir={tmp_path}",
                "--virtual-time-budget=10000",
                "--dump-dom",
                (finished.folder / "results/config" / page).as_uri(),
            ],
            tmp_path,
        )
        for word in words:
            assert word in done.stdout, (page, word)


@pytest.mark.thorough
def test_another_experiment_leaves_the_results_of_the_first(make_workspace):
    workspace = make_workspace("back")
    small = workspace.write("config/small.yaml", "defaults: {epochs: 3}\n")
    other = workspace.write(
        "config/other.yaml",
        "defaults: {epochs: 3, model: linear, ranks: 1}\nruns: config/other.tsv\n",
    )
    workspace.write("config/other.tsv", "run\nother\n")
    for config, name in ((small, "digits"), (other, "other")):
        done = workspace.snakemake("summarize", "--configfile", config)
        assert done.returncode == 0, done.stdout + done.stderr
        summary = pd.read_csv(workspace.folder / "results" / config.stem / "summary.csv")
        assert list(summary["run"]) == [name]
    assert workspace.jobs("summarize", "--configfile", small) == {}
