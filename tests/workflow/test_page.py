"""The page of results in Chromium, as a person sees it: on three widths, light and dark, by keys.

Set LOCKSTEP_PICTURES to a folder, and pictures of all of it stay there to be looked at.
"""

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from lockstep.pipeline.config import Run
from lockstep.pipeline.page.write import write_page
from tests.chromium import find, opened
from tests.conftest import thorough
from tests.made import (
    DIGITS,
    write_check,
    write_data,
    write_numbers,
    write_progress,
    write_run,
    write_words,
)

pytestmark = pytest.mark.skipif(find() is None, reason="there is no chromium on the PATH")


LOOK = (Path(__file__).parent / "look.js").read_text()
OPEN_ALL = "document.querySelectorAll('details').forEach((one) => { one.open = true; })"
STRATEGIES = {
    "single": Run(strategy="single", ranks=1),
    "data_parallel": Run(strategy="data_parallel", ranks=1),
    "ddp": Run(strategy="ddp", ranks=2),
    "sync_sgd-tree": Run(ranks=2),
    "sync_sgd-fast": Run(ranks=2, reduction="fast"),
    "local_sgd-8": Run(strategy="local_sgd", ranks=2),
    "local_sgd-once": Run(strategy="local_sgd", sync_every=0, ranks=2),
    "pipeline": Run(strategy="pipeline", ranks=2),
    "hybrid": Run(strategy="hybrid", ranks=4),
    "fsdp": Run(strategy="fsdp", ranks=2),
}


def look(browser, what):
    """Return what a function of look.js finds in the page that is open."""
    return browser.run(f"(() => {{ {LOOK} return {what}(); }})()")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("page") / "data", DIGITS)


@pytest.fixture(scope="module")
def ten(data):
    results = data.parent / "ten"
    alike = ("single", "sync_sgd-tree", "pipeline", "hybrid", "fsdp")
    for number, (name, run) in enumerate(STRATEGIES.items()):
        model = 0 if name in alike else number
        write_run(results / name, data, run, model, 5 + model % 3, validated=True)
        write_check(results, run, load=model / 4)
    write_page(results, STRATEGIES)
    return results / "index.html"


@pytest.fixture(scope="module")
def pages(data, ten):
    """Pages of one run, of ten and of many, and one of runs that go on."""
    write_run(data.parent / "one/digits", data)
    write_page(data.parent / "one")
    for number in range(100):
        run = Run(lr=0.001 * (1 + number % 10), seed=number // 10, ranks=2)
        write_run(data.parent / f"many/{number:03}", data, run, number, 4 + number % 5, number % 2)
    write_page(data.parent / "many")
    shutil.copytree(ten.parent, data.parent / "live", ignore=shutil.ignore_patterns("*.html"))
    going = ("now", "a-run-with-quite-a-long-name-that-somebody-chose")
    for name in going:
        write_progress(data.parent / "live" / name, time.time(), 5)
    write_page(data.parent / "live", [*STRATEGIES, *going, "later"], live=True)
    return {name: data.parent / name / "index.html" for name in ("one", "ten", "many", "live")}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with opened(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return Path(os.environ.get("LOCKSTEP_PICTURES") or tmp_path_factory.mktemp("pictures"))


# The page of ten runs, and of runs that go on, in each way; those of one and of many in one way.
ONCE = [("one", 1280, "light"), ("many", 390, "dark")]
SEEN = [
    (name, width, mode)
    if name in ("ten", "live") or (name, width, mode) in ONCE
    else thorough(name, width, mode)
    for name in ("one", "ten", "many", "live")
    for width in (1440, 1280, 390)
    for mode in ("light", "dark")
]


@pytest.mark.parametrize(("name", "width", "mode"), SEEN)
def test_every_section_is_seen(name, width, mode, browser, pages, pictures):
    dark = mode == "dark"
    browser.open(pages[name], width, dark)
    browser.run("sessionStorage.clear()")
    browser.open(pages[name], width, dark)
    shown = f"{name}-{width}-{mode}"
    browser.picture(pictures / f"{shown}.png")
    browser.run(OPEN_ALL)
    assert look(browser, "chooseAll") >= 4
    assert browser.said() == []
    seen, poor = look(browser, "contrast")
    assert poor == []
    assert seen > 100
    assert browser.run("document.documentElement.scrollWidth") == width
    assert look(browser, "unnamed") == []
    browser.picture(pictures / f"{shown}-open.png")
    assert browser.run("document.querySelectorAll('#curves path.curve').length") > 1
    assert browser.run("document.querySelectorAll('#errors-of td.right').length") == 10
    assert browser.run("[...document.images].every((one) => one.naturalWidth > 0)")
    smallest = "Math.min(...[...document.querySelectorAll('svg text')].map((one) => "
    smallest += "one.getBoundingClientRect().height))"
    assert browser.run(smallest) > 10  # pixels: on a phone it is text as well


@pytest.mark.parametrize("write", [write_numbers, write_words])
def test_other_tasks_have_a_page(write, browser, data, pictures):
    results = data.parent / write.__name__
    for model in range(3):
        write(results / f"r{model}", data, model)
    write_page(results)
    browser.open(results / "index.html", 390, True)
    browser.run(OPEN_ALL)
    look(browser, "chooseAll")
    assert browser.said() == []
    assert look(browser, "contrast")[1] == look(browser, "unnamed") == []
    assert browser.run("document.documentElement.scrollWidth") == 390
    rows = 24 if write is write_numbers else 0
    assert browser.run("document.querySelectorAll('#errors-of tbody tr').length") == rows
    browser.picture(pictures / f"{write.__name__}.png")


def test_a_table_is_sorted_by_keys_and_stays_so(browser, ten):
    browser.open(ten, 1280, False)
    names = "[...document.querySelectorAll('#table tbody th')].map((one) => one.textContent)"
    assert browser.run(names) == list(STRATEGIES)
    columns = "[...document.querySelectorAll('#table thead th')].map((one) => one.textContent)"
    at = browser.run(columns).index("accuracy, last")
    head = f"document.querySelectorAll('#table thead th')[{at}]"
    browser.run(f"{head}.querySelector('button').focus()")
    assert browser.run("getComputedStyle(document.activeElement).outlineStyle") != "none"
    browser.press("Enter", 13)
    assert browser.run(f"{head}.getAttribute('aria-sort')") == "ascending"
    values = f"[...document.querySelectorAll('#table tbody tr')].map((row) => +row.cells[{at}]"
    values += ".dataset.sort)"
    found = browser.run(values)
    assert found == sorted(found)
    browser.press(" ", 32)
    assert browser.run(f"{head}.getAttribute('aria-sort')") == "descending"
    assert browser.run(values) == sorted(found, reverse=True)
    browser.open(ten, 1280, False)
    assert browser.run(values) == sorted(found, reverse=True)
    browser.run("sessionStorage.clear()")


def test_a_run_that_is_ticked_off_leaves_the_curves(browser, ten):
    browser.open(ten, 1280, False)
    drawn = "document.querySelectorAll('#curves path.curve:not(.pale)').length"
    assert browser.run(drawn) == 4 * 10
    browser.run("document.querySelector('#table input[data-run=\"3\"]').focus()")
    browser.press(" ", 32)
    assert browser.run(drawn) == 4 * 9
    rows = "[...document.querySelectorAll('#values tbody th')].map((one) => one.textContent)"
    assert "sync_sgd-tree" not in browser.run(rows)
    browser.run("document.getElementById('epoch').focus()")
    browser.press("Home", 36)
    assert browser.run("document.querySelector('#values tbody td').textContent") == "1"
    assert browser.run("document.getElementById('at').textContent") == "1 of 30"
    browser.run("document.getElementById('none').click()")
    assert browser.run(drawn) == 0
    browser.run("sessionStorage.clear()")


def test_the_table_of_runs_fits_a_window_and_the_sections_a_phone(browser, data):
    results = data.parent / "search"
    for number in range(6):
        run = Run(lr=[0.003, 0.01, 0.03][number // 2], seed=number % 2, crop=0.5)
        name = f"digits-lr{run.lr}-seed{run.seed}"
        write_run(results / name, data, run, number, 4 + number, True, 0.1 + number / 10)
    write_page(results)
    browser.open(results / "index.html", 1200, False)
    room = "document.querySelector('{0}').clientWidth - document.querySelector('{0}').scrollWidth"
    assert browser.run(room.format(".wide:has(#table)")) == 0
    assert browser.run("document.querySelectorAll('#traffic figure').length") == 1
    browser.open(results / "index.html", 420, False)
    assert browser.run(room.format("nav")) == 0


def test_where_nothing_was_sent_no_speed_is_drawn_against_it(browser, data):
    write_run(data.parent / "alone/digits", data, sent=0)
    write_page(data.parent / "alone")
    browser.open(data.parent / "alone/index.html", 1280, False)
    assert browser.run("document.querySelectorAll('#traffic figure').length") == 0
    assert browser.run("document.querySelectorAll('#curves path.curve').length") > 1
    assert browser.said() == []


def test_a_loss_of_a_wide_range_is_drawn_by_its_logarithm(browser, tmp_path, pictures):
    results = tmp_path / "results"
    log = "document.getElementById('log').checked"
    title = "document.querySelector('#curves figcaption').textContent"
    axis = "[...document.querySelectorAll('#curves figure:first-child text[text-anchor=end]')]"
    axis += ".map((one) => one.textContent).filter((text) => text !== 'epoch')"

    def draw(losses):
        write_progress(results / "one", time.time())
        lines = [
            {"event": "epoch", "epoch": at + 1, "epochs": 9, "loss": loss, "state": "training"}
            for at, loss in enumerate(losses)
        ]
        text = "\n".join(json.dumps(line | {"time": time.time()}) for line in lines)
        (results / "one/progress.jsonl").write_text(text + "\n")
        write_page(results)
        browser.open(results / "index.html", 1280, False)

    draw([2, 1, 0.5, 0.03])  # 67 times
    assert not browser.run(log)
    assert "logarithmic" not in browser.run(title)
    draw([2, 900, 1, 0.5])  # an outlier, 1,800 times
    assert browser.run(log)
    assert browser.run(title) == "Loss · training, logarithmic"
    assert browser.run(axis) == ["1", "10", "100"]
    browser.picture(pictures / "outlier.png")
    draw([2e9, 0, 3e-9, 1e-14])
    assert browser.run(title).endswith("0 is at the bottom")
    assert browser.run(axis) == ["1e-12", "1e-9", "1e-6", "0.001", "1", "1,000", "1e6", "1e9"]
    browser.run("document.getElementById('log').click()")  # what the reader says is kept
    draw([2, 900, 1, 0.5])
    assert not browser.run(log)
    assert "logarithmic" not in browser.run(title)
    browser.run("sessionStorage.clear()")


def test_runs_that_go_on_are_drawn_from_the_start(browser, pages):
    browser.open(pages["live"], 1280, False)
    browser.run("sessionStorage.clear()")
    browser.open(pages["live"], 1280, False)
    rows = "[...document.querySelectorAll('#values tbody th')].map((one) => one.textContent)"
    shown = browser.run(rows)
    assert len(shown) == 8
    assert "now" in shown
    assert browser.run("document.querySelectorAll('progress').length") == 3


def test_two_runs_are_compared(browser, ten):
    browser.open(ten, 1280, False)
    choose = """((a, b) => { for (const [id, name] of [["first", a], ["second", b]]) {
      const list = document.getElementById(id);
      list.value = [...list.options].find((one) => one.text === name).value;
      list.dispatchEvent(new Event("change")); }
      return document.getElementById("difference").textContent; })"""
    said = browser.run(f"{choose}('single', 'hybrid')")
    assert "The same bits" in said
    assert "strategysinglehybrid" in said
    said = browser.run(f"{choose}('hybrid', 'ddp')")
    assert "Different bits" in said
    assert "from epoch 1 on" in said
    assert "strategyhybridddp" in said
    assert "strategyddphybrid" in browser.run(f"{choose}('ddp', 'hybrid')")
    browser.run("sessionStorage.clear()")


def test_a_page_that_loads_itself_again_stays_as_it_was(browser, pages):
    page = pages["live"]
    text = page.read_text()
    browser.open(page, 1280, False)
    browser.run("document.getElementById('meanings').open = true")
    browser.run("document.querySelector('#table input[data-run=\"2\"]').click()")
    browser.run("window.before = true; scrollTo(0, 700)")
    page.write_text(text.replace('"refresh":10.0', '"refresh":1'))
    browser.run("location.reload()")  # from here on each second
    browser.wait("window.before === undefined && document.readyState === 'complete'")
    browser.run("window.before = true; scrollTo(0, 700)")
    browser.wait("window.before === undefined && document.readyState === 'complete'")
    assert browser.run("document.getElementById('meanings').open")
    assert not browser.run("document.querySelector('#table input[data-run=\"2\"]').checked")
    assert browser.run("scrollY") == 700
    browser.run("document.getElementById('pause').click(); window.before = true")
    time.sleep(2.5)
    assert browser.run("window.before")
    browser.run("sessionStorage.clear()")
    page.write_text(text)


def test_an_anchor_opens_what_it_names(browser, ten):
    browser.open(ten, 1280, False)
    browser.run("location.hash = '#run-fsdp'")
    browser.wait("document.getElementById('run-fsdp').open")


def test_printed_it_is_whole(browser, ten, pictures):
    browser.open(ten, 1000, False, print_=True)
    browser.run("dispatchEvent(new Event('beforeprint'))")
    assert browser.run("[...document.querySelectorAll('details')].every((one) => one.open)")
    assert not browser.run("document.querySelector('nav').checkVisibility()")
    browser.picture(pictures / "ten-print.png")


def test_hostile_names_are_text(browser, data):
    names = ["<img src=x onerror=alert(1)>", '"><svg onload=alert(1)>', "__proto__", "a'b c"]
    results = data.parent / "hostile"
    bad = write_data(data.parent / "bad", ["<img src=x onerror=alert(1)>", "'\">", "__proto__"])
    for number, name in enumerate(names):
        write_run(results / name, bad, Run(ranks=1), number, 9)
    write_page(results)
    browser.open(results / "index.html", 1280, False)
    browser.run("window.asked = []; window.alert = (what) => window.asked.push(what)")
    browser.run(OPEN_ALL)
    look(browser, "chooseAll")
    assert browser.said() == []
    assert browser.run("window.asked.length") == 0
    assert browser.run("document.querySelectorAll('[onerror], [onload]').length") == 0
    shown = "[...document.querySelectorAll('#table tbody th')].map((one) => one.textContent)"
    assert sorted(browser.run(shown)) == sorted(names)
