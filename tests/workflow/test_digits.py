"""The default experiment, from nothing to the report, and what reruns when something changes."""

import json
import shutil
import sys

import pandas as pd
import pytest

from lockstep.files import sha256
from tests.conftest import run, thorough
from tests.damage import flipped


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
    # Captions that name what a rule has not are written all the same, and broken.
    assert "WARNING/" not in (finished.folder / "logs/config/report.log").read_text()
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


def test_an_experiment_becomes_a_crate(finished, tmp_path):
    results, crate = finished.folder / "results/config", tmp_path / "crates/one"
    words = ["lockstep", "crate", "results/config", "--license", "CC-BY-4.0", "--output", crate]
    done = run(words, finished.folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{crate}/ro-crate-metadata.json\n"
    metadata = json.loads((crate / "ro-crate-metadata.json").read_text())
    graph = {entity["@id"]: entity for entity in metadata["@graph"]}
    # Each file is there, and has the hash that is said of it; those of the run are the same still.
    files = {path: entity for path, entity in graph.items() if "File" in entity["@type"]}
    there = {str(path.relative_to(crate)) for path in crate.rglob("*") if path.is_file()}
    assert there == files.keys() | {"ro-crate-metadata.json"}
    for path, entity in files.items():
        assert entity["sha256"] == sha256(crate / path)
    record = json.loads((results / "digits/train.json").read_text())
    assert files["digits/model.safetensors"]["sha256"] == record["model_sha256"]
    manifest = json.loads((crate / "data/manifest.json").read_text())
    assert manifest["sha256"] == record["data_sha256"]
    # It says what made them, of what, and when.
    workflow, action = graph[graph["./"]["mainEntity"]["@id"]], graph["#run"]
    assert workflow["@id"] == "workflow/Snakefile"
    assert action["instrument"] == {"@id": "workflow/Snakefile"}
    assert {"@id": "data/manifest.json"} in action["object"]
    assert {"@id": "digits/model.safetensors"} in action["result"]
    assert record["started"] == action["startTime"] < action["endTime"]
    assert graph["./"]["license"] == {"@id": "https://spdx.org/licenses/CC-BY-4.0"}
    # Not a second time, and not of other files than the records'.
    assert "is there already" in run(words, finished.folder).stderr
    with flipped(results / "digits/model.safetensors", 1000):
        done = run([*words[:-1], tmp_path / "two"], finished.folder)
    assert done.returncode == 2 and "model.safetensors: has SHA-256 " in done.stderr
    assert not (tmp_path / "two").exists()


@pytest.mark.skipif(not shutil.which("rocrate-validator"), reason="there is no rocrate-validator")
def test_a_crate_is_valid(finished, tmp_path):
    words = ["lockstep", "crate", "results/config", "--license", "MIT", "--output", tmp_path / "it"]
    assert run(words, finished.folder).returncode == 0
    # It asks w3id.org for the context.
    words = ["rocrate-validator", "-y", "validate", "--no-paging", "-p", "workflow-run-crate"]
    done = run([*words, tmp_path / "it"], tmp_path)
    assert done.returncode == 0, done.stdout


def test_every_rule_leaves_a_log_and_a_benchmark(finished):
    expected = {
        "summarize",
        "draw_table",
        "draw_runs/0",
        "report",
        "page",
        "check/2x1-auto",
    }
    expected |= {"partition/digits-stratified-4-seed0"}
    rules = ("download", "prepare", "train", "average", "evaluate")
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
            *("draw_runs_0", "draw_table", "report", "page"),
        ],
        1,
    )


def test_a_longer_check_reruns_no_training(restored):
    jobs = restored("config/config.yaml", "check_seconds: 1.0", "check_seconds: 2.0").jobs()
    rules = ["check_world", "draw_runs_0", "draw_table", "report", "page"]
    assert jobs == dict.fromkeys(rules, 1)


def test_a_model_reruns_train_and_the_check_of_the_model(restored):
    jobs = restored("config/config.yaml", "model: cnn", "model: linear").jobs()
    assert jobs == dict.fromkeys(
        [
            *("check_world", "train_run", "average_run", "evaluate_run", "summarize"),
            *("draw_runs_0", "draw_table", "report", "page"),
        ],
        1,
    )


@pytest.mark.parametrize(
    ("product", "rule"),
    [
        ("results/config/digits/model.safetensors", "train_run"),
        ("results/config/digits/predictions.csv", "evaluate_run"),
        thorough("results/config/digits/figures/time.svg", "draw_runs_0"),
        thorough("results/config/check/2x1-auto.json", "check_world"),
        thorough("results/config/check/2x1-auto.csv", "check_world"),
        thorough("results/config/digits/figures/scaling.svg", "draw_runs_0"),
        thorough("results/config/figures/2x1-auto/communication.html", "draw_table"),
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
    assert jobs == dict.fromkeys(["summarize", "draw_table", "report", "page"], 1)


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
