"""config: what may be set, how it is read, and the one line that says what is wrong."""

import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import lockstep.pipeline.config
from lockstep.checkpoint import period
from lockstep.pipeline.config import (
    Config,
    Dataset,
    Run,
    RunRow,
    parse,
)
from lockstep.pipeline.experiment import RESERVED, folders, load
from lockstep.pipeline.yaml_file import check_file

# Of these a run differs from the defaults in each value.
OTHER = {
    "shards": ("8", 8),
    "scheme": ("dirichlet", "dirichlet"),
    "alpha": ("0.25", 0.25),
    "seed": ("9223372036854775807", 2**63 - 1),
    "model": ("my.models:make", "my.models:make"),
    "strategy": ("ddp", "ddp"),
    "reduction": ("fast", "fast"),
    "sync_every": ("0", 0),
    "stages": ("4", 4),
    "pipeline_schedule": ("gpipe", "gpipe"),
    "ranks": ("4", 4),
    "threads": ("2", 2),
    "oversubscribe": ("true", True),
    "device": ("cpu", "cpu"),
    "epochs": ("7", 7),
    "batch": ("64", 64),
    "shift": ("3", 3),
    "flip": ("True", True),
    "optimizer": ("adam", "adam"),
    "lr": ("1e-3", 0.001),
    "momentum": ("0.5", 0.5),
    "nesterov": ("false", False),
    "weight_decay": ("5e-4", 0.0005),
    "decay_norm_bias": ("TRUE", True),
    "schedule": ("cosine", "cosine"),
    "warmup": ("0.5", 0.5),
    "step_epochs": ("3", 3),
    "step_gamma": ("0.5", 0.5),
    "label_smoothing": ("0.1", 0.1),
    "clip": ("2", 2.0),
    "precision": ("bfloat16", "bfloat16"),
    "snapshots": ("2", 2),
}


@pytest.fixture
def read(tmp_path):
    """A function that loads a configuration with a table of this text."""

    def run(table, values=None):
        (tmp_path / "runs.tsv").write_text(table)
        return load({"runs": "runs.tsv", **(values or {})}, tmp_path)

    return run


def test_what_is_not_said_has_its_default(read):
    config, runs = read("run\none\ntwo\n")
    assert config == Config(runs="runs.tsv")
    assert runs == {"one": Run(), "two": Run()}
    assert list(runs) == ["one", "two"]


def test_cells_are_read_as_the_type_of_their_key(read):
    known = OTHER.keys() & Run.model_fields.keys()
    header, cells = "\t".join(known), "\t".join(OTHER[name][0] for name in known)
    _, runs = read(f"run\t{header}\nx\t{cells}\n")
    for name in known:
        value = getattr(runs["x"], name)
        assert (value, type(value)) == (OTHER[name][1], type(OTHER[name][1]))
        assert value != getattr(Run(), name)


def test_empty_cells_keep_the_defaults(read):
    values = {"defaults": {"epochs": 3, "snapshots": 2, "shards": 2, "model": "linear"}}
    _, runs = read("run\tepochs\tmodel\na\t\tcnn\nb\t9\t\nc\n\nd\t\t\n", values)
    assert {name: (run.epochs, run.model, run.shards) for name, run in runs.items()} == {
        "a": (3, "cnn", 2),
        "b": (9, "linear", 2),
        "c": (3, "linear", 2),
        "d": (3, "linear", 2),
    }


def test_a_row_overrides_what_the_defaults_say(read):
    values = {"defaults": {"ranks": 2, "shards": 6, "batch": 12}}
    _, runs = read("run\tranks\tstrategy\na\t1\tsingle\n", values)
    assert (runs["a"].ranks, runs["a"].strategy, runs["a"].shards) == (1, "single", 6)


def test_comments_and_empty_lines_are_no_runs(read):
    _, runs = read("# why\nrun\tseed\n\na\t1\n# b\t2\n")
    assert {name: run.seed for name, run in runs.items()} == {"a": 1}


def test_a_hash_within_a_cell_cuts_nothing_off(read):
    _, runs = read("run\tmodel\tseed\na\tzoo:c#\t1\n")
    assert (runs["a"].model, runs["a"].seed) == ("zoo:c#", 1)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"color": "red"}, ["configuration: color: no such key", "dataset, defaults, runs"]),
        (
            {"dataset": {"nam": "mnist"}},
            ["configuration: dataset.nam: no such key", "did you mean 'name'? config/README.md"],
        ),
        ({"epochs": 3}, ["configuration: epochs: no such key; it belongs under defaults"]),
        ({"defaults": {"path": "x"}}, ["defaults.path: no such key; it belongs under dataset"]),
        ({"defaults": {"learning_rate": 1}}, ["no such key; did you mean 'lr'?"]),
        ({"grid": {"lr": 0.1}}, ["grid.lr: expected a list, as in [0.1]"]),
        ({"defaults": {"epoch": 3}}, ["configuration: defaults.epoch: no such key", "epochs"]),
        ({"defaults": {"run": "x"}}, ["configuration: defaults.run: no such key"]),
        ({"defaults": {"epochs": "many"}}, ["configuration: defaults.epochs", "'many'"]),
        ({"defaults": {"ranks": True}}, ["configuration: defaults.ranks", "expected int"]),
        ({"pathvars": {"reslts": "x"}}, ["configuration: pathvars", "reslts"]),
        ({"defaults": {"epochs": 0}}, ["configuration: defaults.epochs", "not 0"]),
        ({"defaults": {"epochs": 2.5}}, ["configuration: defaults.epochs", "not 2.5"]),
        ({"defaults": {"lr": None}}, ["configuration: defaults.lr", "not None"]),
        ({"defaults": {"lr": float("nan")}}, ["configuration: defaults.lr", "nan"]),
        ({"defaults": {"lr": float("inf")}}, ["configuration: defaults.lr", "inf"]),
        ({"defaults": {"alpha": float("inf")}}, ["configuration: defaults.alpha", "inf"]),
        ({"defaults": {"seed": 2**63}}, ["configuration: defaults.seed", str(2**63)]),
        ({"defaults": {"seed": -1}}, ["configuration: defaults.seed", "-1"]),
        (
            {"defaults": {"scheme": "two\nlines"}},
            ["configuration: defaults.scheme", "'stratified'"],
        ),
        ({"defaults": [1, 2]}, ["configuration: defaults", "[1, 2]"]),
        ({"defaults": {1: 2}}, ["configuration: defaults", "1"]),
        ({"dataset": "mnist"}, ["configuration: dataset", "'mnist'"]),
        ({"dataset": {"name": "imagenet"}}, ["configuration: dataset.name", "'cifar10'"]),
        ({"dataset": {"mirror": "ftp://x"}}, ["configuration: dataset.mirror", "'ftp://x'"]),
        ({"dataset": {"test_fraction": 1}}, ["configuration: dataset.test_fraction", "not 1"]),
        ({"dataset": {"name": "npz"}}, ["configuration: dataset", "'npz' needs key 'path'"]),
        (
            {"dataset": {"name": "imagefolder"}},
            ["configuration: dataset", "'imagefolder' needs key 'path'"],
        ),
        (
            {"dataset": {"name": "npz", "path": "a{b}"}},
            ["configuration: dataset: path: ", "'a{b}'"],
        ),
        (
            {"dataset": {"name": "mnist", "path": "x"}},
            ["configuration: dataset", "'mnist' takes no key 'path'"],
        ),
        ({"pathvars": {"results": 3}}, ["configuration: pathvars.results", "not 3"]),
        ({"pathvars": "out"}, ["configuration: pathvars", "'out'"]),
        ({"runs": ["a", "b"]}, ["configuration: runs", "['a', 'b']"]),
        *(
            ({"defaults": {key: 10**30}}, [f"configuration: defaults.{key}: ", f"not {10**30}"])
            for key in (
                *("shards", "ranks", "stages", "threads", "epochs", "batch", "sync_every", "clip"),
                *("step_epochs", "checkpoint_keep", "alpha", "lr", "weight_decay", "warmup"),
                "timeout",
            )
        ),
        ({"check_seconds": 1e300}, ["configuration: check_seconds: ", "not 1e+300"]),
        ({"defaults": {"checkpoint_every": "0 s"}}, ["checkpoint_every: expected more", "'0 s'"]),
        ({"defaults": {"checkpoint_every": "0.00 h"}}, ["checkpoint_every: expected more"]),
        ({"defaults": {"checkpoint_every": "9" * 400 + " s"}}, ["checkpoint_every: ", "999..."]),
        ({"defaults": {"epochs": ["x" * 10**6] * 3}}, ["defaults.epochs: ", "xxx..."]),
        ({"pathvars": {"results": "logs"}}, ["pathvars: logs: 'logs' is that of results"]),
        ({"pathvars": {"results": "./logs/benchmarks/"}}, ["benchmarks", "that of results"]),
        ({"pathvars": {"results": "data"}}, ["pathvars: results: 'data' is among the datasets"]),
        ({"pathvars": {"logs": "data/logs"}}, ["pathvars: logs: ", "is among the datasets"]),
        ({"pathvars": {"results": "."}}, ["pathvars: results: '.' holds the workflow itself"]),
        ({"pathvars": {"results": "results/.."}}, ["results: 'results/..' holds the workflow"]),
        ({"pathvars": {"results": "/"}}, ["pathvars: results: '/' holds the workflow itself"]),
        ({"pathvars": {"results": ""}}, ["pathvars: results: '' cannot be the path"]),
        ({"pathvars": {"results": "a{b}"}}, ["pathvars: results: 'a{b}' cannot be the path"]),
    ],
)
def test_a_wrong_configuration_is_one_line(read, refused, values, words):
    with refused(*words):
        read("run\na\n", values)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("run\tepoch\na\t3\n", ["a: epoch: no such key", "epochs"]),
        ("run\tepochs\na\tten\n", ["a: epochs", "'ten'"]),
        ("run\tepochs\na\t3\nb\t1.5\n", ["b: epochs", "'1.5'"]),
        ("run\tflip\na\tmaybe\n", ["a: flip", "'maybe'"]),
        ("run\tmodel\tscheme\na\tcnn\tsorted\n", ["a: scheme", "'dirichlet'", "'sorted'"]),
        ("run\tranks\tshards\tbatch\na\t5\t4\t8\n", ["a: ranks", "5 ranks", "at most 4"]),
        ("run\tranks\treduction\na\t5\tfast\n", ["a: ranks", "5 ranks", "at most 4"]),
        ("run\tranks\tstrategy\na\t3\tfsdp\n", ["a: ranks", "3 ranks", "1, 2, 4"]),
        ("run\tranks\tshards\tbatch\na\t1\t4\t10\n", ["a: batch", "10", "take 8"]),
        ("run\tranks\tshards\tbatch\na\t1\t4\t3\n", ["a: batch", "3", "take 4"]),
        ("run\tranks\tshards\tstrategy\na\t2\t4\tsingle\n", ["a: ranks", "'single'", "not 2"]),
        ("run\tranks\tstrategy\na\t2\tdata_parallel\n", ["a: ranks", "'data_parallel'", "not 2"]),
        ("run\tranks\tstrategy\na\t5\tlocal_sgd\n", ["a: ranks", "5 ranks", "at most 4"]),
        ("run\tranks\tstrategy\na\t3\tfsdp\n", ["a: ranks", "3 ranks", "1, 2, 4"]),
        ("run\tranks\tstrategy\na\t3\thybrid\n", ["a: stages", "3 ranks", "2 stages", "1, 3"]),
        (
            "run\tranks\tstages\tstrategy\na\t6\t2\thybrid\n",
            ["a: ranks", "6 ranks", "3 pipelines", "4 shards", "2 times one of 1, 2, 4"],
        ),
        (
            "run\tranks\tstrategy\na\t5\tpipeline\n",
            ["a: pipeline_schedule", "as many shards", "5, not 4", "gpipe"],
        ),
        ("run\tsync_every\na\t-1\n", ["a: sync_every", "'-1'"]),
        ("run\tstages\na\t0\n", ["a: stages", "'0'"]),
        ("run\toptimizer\tmomentum\tnesterov\na\tsgd\t0\ttrue\n", ["a: nesterov", "momentum"]),
        ("run\tepochs\tsnapshots\na\t2\t3\n", ["a: snapshots", "3", "2 epochs"]),
        (
            "run\tepochs\tsnapshots\twarmup\tschedule\na\t2\t1\t3\tcosine\n",
            ["a: warmup", "3", "2 epochs"],
        ),
        ("run\tseed\na\t1\na\t2\n", ["a: run: is there twice"]),
        ("run\tseed\nFirst\t1\nfirst\t2\n", ["first: run: is there twice", "'First'"]),
        ("run\nCheck\n", ["Check: run: is a name that Lockstep uses itself"]),
        *((f"run\n{name}\n", [f"{name}: run", "uses itself"]) for name in sorted(RESERVED)),
        ("run\n../up\n", ["../up: run"]),
        ("run\n.hidden\n", [".hidden: run"]),
        ("run\nin/side\n", ["in/side: run"]),
        ("run\ntwo words\n", ["two words: run"]),
        ("seed\tlr\n1\t1\n", ["no column 'run' among 'seed', 'lr'"]),
        ("run\tseed\na\t1\n\t2\n", ["row 2: run: is missing"]),
        ("run\tseed\tseed\na\t1\t2\n", ["a: seed.1: no such key"]),
        ("run\n", ["there is no run in it"]),
        ("", ["cannot be read"]),
        ("# nothing\n", ["cannot be read"]),
        ("run\tseed\na\t1\t2\n", ["cannot be read"]),
        ("run\tseed\na\t1\nb\t1\t2\n", ["cannot be read", "line 3"]),
        ('run\tmodel\na\t"cnn\n', ["cannot be read"]),
        ("run,seed\na,1\n", ["no column 'run' among 'run,seed'", "tabs"]),
    ],
)
def test_a_wrong_table_is_one_line(read, refused, tmp_path, table, words):
    with refused(tmp_path / "runs.tsv", *words):
        read(table)


def test_what_is_missing_is_not_followed_by_all_the_rest(read):
    with pytest.raises(lockstep.pipeline.config.UserError) as caught:
        read("run\tseed\n\t1\n")
    assert str(caught.value).endswith("run: is missing")


@pytest.mark.parametrize(
    ("values", "meant"),
    [
        ({"defaults": {"lrr": 0.1}}, "'lr'"),
        ({"dataset": {"name": "mnst"}}, "'mnist'"),
        ({"grid": {"epoch": [1]}}, "'epochs'"),
    ],
)
def test_what_was_probably_meant_is_said(read, refused, values, meant):
    with refused(f"did you mean {meant}?"):
        read("run\na\n", values)


def test_a_grid_has_every_value_with_every_other_of_every_row(read):
    grid = {"lr": [0.01, 3e-3], "seed": [0, 1, 2], "clip": [None]}
    _, runs = read("run\tmodel\na\tcnn\nb\tmlp\n", {"grid": grid})
    assert len(runs) == 12
    assert list(runs)[:2] == ["a-lr0.01-seed0-clipNone", "a-lr0.01-seed1-clipNone"]
    run = runs["b-lr0.003-seed2-clipNone"]
    assert (run.model, run.lr, run.seed, run.clip) == ("mlp", 0.003, 2, None)
    assert list(read("run\nx\n", {"grid": {"weights": ["a/b c.pth"]}})[1]) == ["x-weightsa_b_c.pth"]


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ({"lt": [1]}, ["grid: lt: no such key"]),
        ({"lr": []}, ["grid: lr: has no values"]),
        ({"seed": [1]}, ["grid: seed: the table of runs has it as well"]),
        ({"lr": [0.1, -1]}, ["a-lr_1: lr: "]),
        ({"lr": 0.1}, ["grid.lr: "]),
        ({key: [1] * 10_000 for key in ("lr", "clip")}, ["100,000,000 runs"]),
        (
            {"lr": [i / 1000 for i in range(1, 200)], "batch": list(range(4, 400, 4))},
            ["19,701 runs"],
        ),
    ],
)
def test_a_grid_that_is_none_is_one_line(read, refused, grid, words):
    with refused(*words):
        read("run\tseed\na\t7\n", {"grid": grid})


def test_as_many_snapshots_are_kept_as_there_are_epochs_but_not_more_than_three(read):
    table = "run\tepochs\tsnapshots\na\t1\t\nb\t2\t\nc\t9\t\nd\t9\t5\n"
    for values in ({}, {"defaults": {"snapshots": None}}):
        _, runs = read(table, values)
        assert [run.snapshots for run in runs.values()] == [1, 2, 3, 5]


def test_where_data_is_a_link_only_datasets_are_taken(read, tmp_path, monkeypatch, refused):
    scratch, here = tmp_path / "scratch", tmp_path / "here"
    for folder in (scratch, here, tmp_path / "big"):
        folder.mkdir()
    (here / "data").symlink_to(scratch)
    (scratch / "mnist").symlink_to(tmp_path / "big")
    monkeypatch.chdir(here)
    for dataset, results in (("digits", "runs"), ("mnist", "runs"), ("mnist", "digits-runs")):
        values = {"dataset": {"name": dataset}, "pathvars": {"results": str(scratch / results)}}
        assert read("run\na\n", values)[0].pathvars == values["pathvars"]
    for dataset, results in (
        ("digits", scratch),
        ("digits", scratch / "digits"),
        ("digits", scratch / "digits" / "runs"),
        ("mnist", tmp_path / "big" / "runs"),
    ):
        values = {"dataset": {"name": dataset}, "pathvars": {"results": str(results)}}
        with refused("pathvars: results: ", "is among the datasets"):
            read("run\na\n", values)


@pytest.mark.parametrize(
    ("files", "name"),
    [
        (["config/mnist.yaml"], "mnist"),
        (["config/mnist.yaml", "/etc/site.v2.yaml"], "mnist+site.v2"),
        (["experiments/first/config.yaml"], "first"),
        (["a b{c}<d>.yaml"], "a_b_c_d_"),
        (["...yaml"], "config"),
    ],
)
def test_each_configuration_has_results_and_logs_of_its_own(files, name):
    found = folders(Config(), map(Path, files))
    logs = f"logs/{name}"
    assert found == {"results": f"results/{name}", "logs": logs, "benchmarks": f"{logs}/benchmarks"}


def test_the_configuration_may_say_where_results_and_logs_are():
    found = folders(Config(pathvars={"logs": "out"}), [Path("config/mine.yaml")])
    assert found == {"results": "results/mine", "logs": "out", "benchmarks": "out/benchmarks"}


def test_a_folder_that_another_has_by_default_is_refused(refused):
    with refused("pathvars: expected three folders", "results 'logs/mine', logs 'logs/mine'"):
        folders(Config(pathvars={"results": "logs/mine"}), [Path("config/mine.yaml")])


def test_folders_may_lie_within_one_another(read):
    pathvars = {"results": "out", "logs": "out/logs", "benchmarks": "/elsewhere/benchmarks"}
    assert read("run\na\n", {"pathvars": pathvars})[0].pathvars == pathvars


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a: 1\nb: 2\na: 3\n", ["line 3: the key 'a' is there twice, first in line 1"]),
        ("d:\n  a: 1\n  a: 2\n", ["line 3: the key 'a' is there twice, first in line 2"]),
        ('{"a": 1,\n\t"a": 2}', ["line 2: the key 'a' is there twice"]),
        ("a: [1\nb: 2\n", ["line 2, column 2: not YAML"]),
        ("a: 1\n\tb: 2\n", ["line 2, column 1: not YAML", "'\\t'"]),
        ("a: 1\n---\na: 2\n", ["line 2, column 1: not YAML"]),
        ("a: &a [*a]\n", ["line 1: it contains itself"]),
        ("a: " + "[" * 5_000, ["nested too deeply"]),
        ('{"a": ' * 5_000, ["nested too deeply"]),
        (
            "a: &a [1,1,1,1,1,1,1,1,1,1]\n"
            + "".join(
                f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n"
                for a, b in zip("abcdefgh", "bcdefghi", strict=True)
            ),
            ["line 5: more than 100,000 values, aliases written out"],
        ),
        ("- a\n", ["expected keys with values"]),
        ("a\n", ["expected keys with values"]),
        ("? [a, b]\n: 1\n", ["line 1: a key must be a word"]),
        ("a: " + "9" * 5000, ["a value cannot be read", "4300 digits"]),
        ("a: 2000-13-01\n", ["a value cannot be read", "month"]),
        ("a: !!python/name:os.system\n", ["line 1, column 4: not YAML"]),
        ("a: \0\n", ["not YAML", "special characters"]),
        ("mu: \xfc\n".encode("latin-1"), ["not a text in UTF-8", "at byte 4"]),
        ("a: 1\n".encode("utf-16"), ["not a text in UTF-8", "at byte 0"]),
    ],
)
def test_a_file_that_is_no_configuration_is_one_line(tmp_path, refused, content, words):
    path = tmp_path / "mine.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with refused(path, *words):
        check_file(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path, refused):
    with refused(tmp_path / "gone.yaml", "No such file"):
        check_file(tmp_path / "gone.yaml")
    with refused(tmp_path, "Is a directory"):
        check_file(tmp_path)


@given(st.binary(max_size=60) | st.text("a:1 -[]{}&*!|>'\"\n\t#?,%<@", max_size=40))
def test_a_file_of_anything_is_a_configuration_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("odd") / "mine.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    try:
        check_file(path)
    except lockstep.pipeline.config.UserError as error:
        assert str(error).startswith(str(path))
    else:
        assert isinstance(yaml.safe_load(path.read_text("utf-8")), dict | None)


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}", "\ufeffa: 1\n", '{"a":\t1}'])
def test_files_that_say_little_are_files(tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    check_file(tmp_path / "mine.yaml")


def test_a_table_that_is_not_there_is_named(tmp_path, refused):
    with refused(f"configuration: runs: there is no {tmp_path / 'gone.tsv'}"):
        load({"runs": "gone.tsv"}, tmp_path)
    with refused(tmp_path, "cannot be read"):
        load({"runs": "."}, tmp_path)
    (tmp_path / "runs.tsv").write_bytes(b"run\n\xff\xfe\n")
    with refused(tmp_path / "runs.tsv", "cannot be read"):
        load({"runs": "runs.tsv"}, tmp_path)


@pytest.mark.parametrize(
    "values",
    [
        {"strategy": "pipeline", "ranks": 3},
        {"strategy": "hybrid", "ranks": 6, "stages": 3},
        {"strategy": "hybrid", "ranks": 8, "stages": 2},
    ],
)
def test_stages_see_all_shards_of_their_pipeline(values):
    run = Run(shards=4, pipeline_schedule="gpipe", **values)
    assert run.ranks == values["ranks"]


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 60))
def test_advice_on_ranks_and_batches_can_be_taken(shards, ranks, batch):
    values = {"shards": shards, "ranks": ranks, "batch": batch}
    for _ in range(2):
        try:
            Run(**values)
            break
        except ValueError as error:
            key, _, advice = str(error).partition("Value error, ")[2].partition(": ")
            number = (
                advice.partition("take ")[2]
                .removeprefix("one of ")
                .removeprefix("at most ")
                .split()[0]
                .strip(",")
            )
            values[key] = int(number)
    Run(**values)


def test_partitions_that_differ_have_folders_that_differ():
    def name(**values):
        return Run(**{"ranks": 1, "batch": 64, **values}).partition

    assert name(scheme="iid", shards=4, seed=0) == "iid-4-seed0"
    assert name(scheme="dirichlet", shards=4, seed=1, alpha=0.5) == "dirichlet-0.5-4-seed1"
    assert name(scheme="dirichlet", alpha=1) == name(scheme="dirichlet", alpha=1.0)
    assert name(scheme="iid", alpha=1) == name(scheme="iid", alpha=2)
    alphas = (0.5, 0.51, 0.5000001, 0.50000001, 1e-9, 1e9)
    assert len({name(scheme="dirichlet", alpha=alpha) for alpha in alphas}) == len(alphas)


def test_a_datasets_folder_is_named_after_it():
    assert Dataset(name="mnist").id == "mnist"
    own = Dataset(name="npz", path="/far/away/my set.v2.npz")
    assert own.title == "npz-my_set.v2.npz"
    assert re.fullmatch(r"npz-my_set\.v2\.npz-[0-9a-f]{6}", own.id)
    others = [
        Dataset(name="imagefolder", path=path, size=size)
        for path in ("birds/", "other/birds")
        for size in (None, 32, "32", [32, 32], [32, 48])
    ]
    assert {one.title for one in others} == {"imagefolder-birds"}
    assert len({one.id for one in others}) == 6
    assert others[1].id == others[2].id == others[3].id
    assert [one.height_width for one in others[:5]] == [None, *[(32, 32)] * 3, (32, 48)]


# the schemas and the ready experiments


def objects(schema):
    """Yield all parts of a schema that describe an object with known keys."""
    if isinstance(schema, dict):
        if "properties" in schema and schema.get("type") == "object":
            yield schema
        for part in schema.values():
            yield from objects(part)


def test_the_schemas_are_up_to_date(repository, tmp_path, monkeypatch):
    (tmp_path / "workflow" / "schemas").mkdir(parents=True)
    place = tmp_path / "src" / "lockstep" / "pipeline" / "config.py"
    monkeypatch.setattr(lockstep.pipeline.config, "__file__", str(place))
    lockstep.pipeline.config.main()
    for name in ("config.schema.yaml", "runs.schema.yaml"):
        written = (repository / "workflow" / "schemas" / name).read_text()
        assert written == (tmp_path / "workflow" / "schemas" / name).read_text(), (
            "write them by `make schemas`"
        )


@pytest.fixture(params=["config", "runs"])
def schema(repository, request):
    path = repository / "workflow" / "schemas" / f"{request.param}.schema.yaml"
    return yaml.safe_load(path.read_text())


def test_the_schemas_are_schemas_that_allow_no_unknown_key(schema):
    jsonschema.Draft202012Validator.check_schema(schema)
    assert list(objects(schema))
    for part in objects(schema):
        assert part["additionalProperties"] is False


def test_the_schemas_describe_every_key(schema):
    for part in objects(schema):
        for name, described in part["properties"].items():
            assert described.get("description") or described.get("$ref"), name


def test_ready_experiments_fit_the_schema_and_load(repository):
    schema = yaml.safe_load((repository / "workflow/schemas/config.schema.yaml").read_text())
    paths = sorted((repository / "config").glob("*.yaml"))
    assert paths
    for path in paths:
        check_file(path)
        values = yaml.safe_load(path.read_text())
        jsonschema.validate(values, schema)
        _, runs = load(values, repository)
        assert runs
        for wrong in (
            {**values, "colour": 1},
            {**values, "dataset": {**values.get("dataset", {}), "colour": 1}},
            {**values, "defaults": {**values.get("defaults", {}), "colour": 1}},
        ):
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate(wrong, schema)


def test_rows_fit_the_schema_of_rows(repository):
    schema = yaml.safe_load((repository / "workflow/schemas/runs.schema.yaml").read_text())
    jsonschema.validate({"run": "a", "ranks": 4, "lr": 0.1}, schema)
    for wrong in ({"ranks": 4}, {"run": "a", "rank": 4}, {"run": "a b"}, {"run": "a", "lr": 0}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


def test_config_yaml_spells_out_every_default(repository):
    values = yaml.safe_load((repository / "config" / "config.yaml").read_text())
    assert values["dataset"].keys() == Dataset.model_fields.keys()
    assert values["defaults"].keys() == Run.model_fields.keys()
    config, _ = load(values, repository)
    assert config == Config()


def test_a_run_survives_json():
    run = Run(scheme="dirichlet", alpha=0.1 + 0.2, clip=None, seed=2**63 - 1)
    assert Run(**json.loads(json.dumps(run.model_dump()))) == run
    assert "run" in RunRow.model_fields


@pytest.mark.parametrize(
    ("every", "expected"),
    [
        ("30 s", (30, "seconds")),
        ("30s", (30, "seconds")),
        ("0.5 s", (0.5, "seconds")),
        ("10 min", (600, "seconds")),
        ("1.5 h", (5400, "seconds")),
        ("1 step", (1, "steps")),
        ("500 steps", (500, "steps")),
        ("1 epoch", (1, "epochs")),
        ("12 epochs", (12, "epochs")),
    ],
)
def test_checkpoints_are_due_by_the_clock_or_by_steps_or_epochs(every, expected):
    assert period(Run(checkpoint_every=every).checkpoint_every) == expected


@pytest.mark.parametrize(
    "every", ["", "5", "five steps", "0 steps", "1.5 epochs", "-1 s", "1 day", "5 steps ", "1e3 s"]
)
def test_other_periods_are_refused(every, refused):
    with refused("run: checkpoint_every", f"not '{every}'"):
        parse(Run, {"checkpoint_every": every}, "run")
