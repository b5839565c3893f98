"""communication, scaling: figures and pages say what the tables say, and predictions say so."""

import json

import pandas as pd
import pytest

from lockstep.errors import UserError
from lockstep.files import sha256
from lockstep.pipeline.config import Run
from lockstep.pipeline.fit import Fit
from lockstep.pipeline.prediction import read_step, strong, weak
from lockstep.pipeline.record import Training
from lockstep.pipeline.report import draw_launch, draw_prediction
from lockstep.pipeline.report.communication import (
    draw_bandwidth,
    draw_latency,
    page_of_communication,
)
from lockstep.pipeline.report.scaling import draw_scaling
from lockstep.pipeline.report.style import size
from tests.damage import change_record

OPERATIONS = ("all_reduce", "send_recv", "broadcast")


@pytest.fixture
def table():
    """A table of two backends: 2 steps of 100 or 10 us, 1 GB/s."""
    rows = []
    for backend, latency in (("gloo", 200.0), ("mpi4py", 20.0)):
        for operation in OPERATIONS:
            for count in (8, 4096, 262_144, 2**24):
                median = latency + count / 1e3
                row = {"backend": backend, "operation": operation, "bytes": count}
                row |= {"iterations": 9, "min_us": 0.5 * median, "median_us": median}
                row |= {"p99_us": 2 * median, "algbw_gbs": count / median / 1e3}
                rows.append(row | {"busbw_gbs": count / median / 1e3})
        rows.append({"backend": backend, "operation": "barrier", "bytes": 0, "iterations": 9})
        rows[-1] |= dict.fromkeys(("min_us", "median_us", "p99_us"), latency)
    return pd.DataFrame(rows)


def check(hosts):
    places = [{"host": host, "cores": 4, "load": 3.25} for host in hosts]
    return {"ranks": places, "mpi": "Open MPI v5"}


TRAIN = Training.model_construct(
    configuration=Run(shards=4, batch=128, epochs=2, snapshots=1),
    steps=20,
    parameters=3_000_000,
    trained_parameters=1_000_000,  # the others are frozen
)
HISTORY = pd.DataFrame(
    {
        "seconds": [0.6, 0.6],
        "compute_seconds": [0.4, 0.4],
        "input_seconds": [0.1, 0.1],
        "communication_seconds": [0.1, 0.1],
    }
)


def texts(figure):
    return " ".join(t.get_text() for t in figure.findobj(match=lambda a: hasattr(a, "get_text")))


@pytest.mark.parametrize(
    ("draw", "column"), [(draw_latency, "median_us"), (draw_bandwidth, "busbw_gbs")]
)
def test_each_operation_has_a_panel_with_a_line_for_each_backend(draw, column, table):
    figure = draw("2x1-auto", check(["a", "a"]), table)
    assert figure.get_size_inches()[1] <= 7
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert len(shown) == len(OPERATIONS)
    for axes, operation in zip(shown, ("all_reduce", "send_recv", "broadcast"), strict=True):
        assert axes.get_xscale() == axes.get_yscale() == "log"
        drawn = [list(line.get_ydata()) for line in axes.lines if line.get_marker() == "o"]
        rows = table[(table["operation"] == operation) & (table["bytes"] > 0)]
        assert drawn == [list(some[column]) for _, some in rows.groupby("backend")]
    assert "2 ranks on 1 host" in texts(figure)


def test_the_fit_is_drawn_through_the_times(table):
    figure = draw_latency("2x1-auto", check(["a", "a"]), table)
    measured, fitted = figure.axes[0].lines[:2]
    assert fitted.get_linestyle() == "--"
    assert fitted.get_ydata() == pytest.approx(measured.get_ydata(), rel=0.01)


def test_the_page_has_every_row_and_the_fit(table):
    page = page_of_communication("2x1-auto", check(["a", "a"]), table)
    assert page.count("<tr><td>all_reduce</td>") == 2 * 4 + 2
    assert "<td>all_reduce</td><td>gloo</td>" in page
    assert "100.0</td>" in page  # the latency of a step
    assert "the network between hosts is not in these numbers" in page
    assert "a had a load average of 3.2 on 4 cores" in page
    assert "nan" not in page
    assert "network" not in page_of_communication("2x1-auto", check(["a", "b"]), table)


def test_a_step_is_that_of_the_median_epoch():
    step = read_step(TRAIN, HISTORY)
    assert step.compute == pytest.approx(0.05)
    assert step.seconds == pytest.approx(0.06)
    assert step.gradients == 4_000_000
    assert (step.ranks, step.samples, step.shards) == (2, 128, 4)


def test_predictions_are_computing_and_then_one_all_reduce():
    step = read_step(TRAIN, HISTORY)
    fit = Fit("mpi4py", "all_reduce", alpha=1e-3, beta=1e9, deviation=0)
    assert weak(step, fit, 1) == pytest.approx(64 / 0.05)
    assert weak(step, fit, 4) == pytest.approx(256 / (0.05 + 4e-3 + 6e-3))
    assert strong(step, fit, 1) == pytest.approx(128 / 0.1)
    assert strong(step, fit, 4) == pytest.approx(128 / (0.025 + 4e-3 + 6e-3))
    assert weak(step, fit, 2) == pytest.approx(strong(step, fit, 2))


def test_a_prediction_says_that_it_is_one_and_ends_where_it_must(table):
    figure = draw_scaling("mine", TRAIN, HISTORY, check(["a", "a"]), table)
    said = texts(figure)
    assert "PREDICTED, not measured" in said
    assert "the network between hosts is not in it" in said
    left, right = figure.axes
    assert [line.get_xdata()[-1] for line in left.lines[:3]] == [1024] * 3
    assert [line.get_xdata()[-1] for line in right.lines[:3]] == [4] * 3  # shards
    (measured,) = (line for line in left.lines if line.get_label() == "measured")
    assert measured.get_xydata().tolist() == [[2, pytest.approx(128 / 0.06)]]
    elsewhere = draw_scaling("mine", TRAIN, HISTORY, check(["a", "b"]), table)
    assert "network" not in texts(elsewhere)


def test_files_become_figures(table, write_records, tmp_path):
    launch, run = tmp_path / "2x1-auto.json", tmp_path / "run"
    write_records(run, TRAIN.configuration)
    launch.write_text(json.dumps(check(["a", "a"])))
    table.to_csv(tmp_path / "2x1-auto.csv", index=False)
    HISTORY.to_csv(run / "history.csv", index=False)
    change_record(run, history_csv_sha256=sha256(run / "history.csv"))
    draw_launch(launch, tmp_path / "out")
    draw_prediction(run, launch, tmp_path / "out")
    made = {path.name for path in (tmp_path / "out").iterdir()}
    assert made == {"communication.html", "latency.svg", "bandwidth.svg", "scaling.svg"}


def test_a_launch_of_one_rank_has_nothing_to_draw(table, tmp_path):
    launch = tmp_path / "1x1-auto.json"
    launch.write_text(json.dumps(check(["a"])))
    table.iloc[:0].to_csv(tmp_path / "1x1-auto.csv", index=False)
    with pytest.raises(UserError, match=r"1x1-auto\.csv: .*one rank has no communication"):
        draw_launch(launch, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_table_that_is_gone_is_named(tmp_path):
    launch = tmp_path / "2x1-auto.json"
    launch.write_text(json.dumps(check(["a", "a"])))
    with pytest.raises(UserError, match=r"2x1-auto\.csv.*check again"):
        draw_launch(launch, tmp_path / "out")


@pytest.mark.parametrize(
    ("number", "text"), [(8, "8 B"), (1024, "1 KiB"), (2**17, "128 KiB"), (2**24, "16 MiB")]
)
def test_sizes_have_units(number, text):
    assert size(number) == text
