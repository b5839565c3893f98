"""The page's tables: of runs, of settings over seeds, of where the time of a step went."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from lockstep.pipeline.groups import (
    BALANCED,
    VALIDATION,
    are_uneven,
    at_chance,
    choice,
    for_person,
    groups,
    validated,
    warnings,
)
from lockstep.pipeline.kinds import MODELS
from lockstep.pipeline.page import charts, judge, ranking
from lockstep.pipeline.page.collect import Check, Found, check_of
from lockstep.pipeline.page.facts import (
    beside_of,
    last_of,
    letters,
    megabytes,
    same_models,
    title_of,
    value_of,
)

Cell = dict[str, Any]
TO = "\N{EN DASH}"

BITS = "Runs with the same letter have the same model, bit for bit."
RANKED = "Settings are ranked by it, not by the test set."
OF_MODEL = {
    "last": "Of the weights after the last epoch, or after the best one with keep: best,",
    "averaged": "Of the mean of the last snapshots",
}
SHOWN_OF_ONE = ("model", "strategy", "ranks")


def table_of(found: Sequence[Found], checks: Mapping[str, Check]) -> dict[str, Any]:
    """Return the table of runs: its columns, and a row for each run."""
    kind = next((one.kind for one in found if one.training), found[0].kind)
    varied, same = settings(found)
    named, models = letters(found), same_models(found)
    intervals = {
        (one.name, model): judge.interval(one, model)
        for one in found
        if one.metrics
        for model in MODELS
    }
    done = [one for one in found if one.metrics]
    runs = ranking.table_of(done) if done else pd.DataFrame({"run": []})
    poor = {one.name for one in done if judge.rest(one.history)[0] == "diverged"}
    poor |= {*runs["run"][at_chance(runs, kind)]}
    domain = _domain(intervals, poor)
    is_validated = any(one.metrics and one.metrics.validation for one in done)
    uneven = are_uneven(runs).any()
    called = {model: last_of(found) if model == "last" else model for model in MODELS}
    sent = any(sum(one.training.bytes_sent) for one in found if one.training)
    columns = [
        _column("run", "run"),
        *([_column("bits", "bits", BITS)] if sum(map(len, models.values())) > 1 else []),
        *(_column(name, name.replace("_", " ")) for name in varied),
        # What is to be chosen by comes first.
        *([_column("validation", "validation loss", RANKED, True)] if is_validated else []),
        *(
            _column(
                f"{kind.main}_{model}",
                f"{kind.title(kind.main)}, {called[model]}",
                f"{OF_MODEL[model]} on the test set, with its 95 % interval.",
                True,
            )
            for model in MODELS
        ),
        *(
            [
                _column(
                    BALANCED,
                    f"{kind.title(BALANCED)}, {called['last']}",
                    "The mean of the classes' recalls, on the test set.",
                    True,
                )
            ]
            if uneven
            else []
        ),
        *(
            []
            if is_validated
            else [_column("loss", "test loss", f"{OF_MODEL['last']} on the test set.", True)]
        ),
        _column("rate", f"{kind.unit}/s", "The median epoch's, and the middle half of them.", True),
        _column("seconds", "seconds", "Of training, without checks and evaluation.", True),
        *(
            [_column("sent", "MB sent", "By all ranks in training; 1 MB is 10⁶ bytes.", True)]
            if sent
            else []
        ),
        _column("memory", "peak MB", "Of the rank with most memory.", True),
    ]
    rows = []
    for number, one in enumerate(found):
        cells = {"run": {"text": one.name, "sort": number, "link": bool(one.training)}}
        if one.training:
            letter = named[one.training.model_sha256]
            cells["bits"] = chip_of(letter, models)
            own = ranking.settings_of(one)
            cells |= {name: _setting(own[name]) for name in varied}
            cells |= _costs(one, check_of(one, checks))
        if one.metrics:
            for model in MODELS:
                cells[f"{kind.main}_{model}"] = _quality(
                    one, model, intervals[one.name, model], domain
                )
            if uneven:
                balanced = value_of(one, "last", BALANCED)
                cells[BALANCED] = _number(balanced, "{}") | {"text": kind.text(BALANCED, balanced)}
            cells["loss"] = _number(one.metrics.last.loss, "{:.4f}")
            if one.metrics.validation:
                cells["validation"] = _number(one.metrics.validation.last.loss, "{:.4f}")
        rows.append({"name": one.name, "cells": [cells.get(c["key"], {}) for c in columns]})
    return {"columns": columns, "rows": rows, "same": same if len(found) > 1 else {}}


def _column(key: str, title: str, hint: str = "", number: bool = False) -> dict[str, Any]:
    return {"key": key, "title": title, "hint": hint, "number": number}


def settings(found: Sequence[Found]) -> tuple[list[str], dict[str, str]]:
    """Return the settings in which runs differ, and what the others are for all of them."""
    known = [setting for one in found if (setting := ranking.settings_of(one))]
    names = ranking.SETTINGS
    if not known:
        return [], {}
    # Of what a strategy alone reads, that another does not is no difference to be shown.
    values = {
        name: {one[name] for one in known} - ({""} if name in ranking.ASKED else set())
        for name in names
    }
    differing = [name for name in names if len(values[name]) > 1]
    same = {
        name: value
        for name in names
        if len(values[name]) == 1 and (value := next(iter(values[name])))
    }
    if len(known) == 1:
        return [name for name in SHOWN_OF_ONE if name in same], same
    return differing, same


def _setting(value: str) -> Cell:
    try:
        return {"text": value, "sort": float(value)}
    except ValueError:
        return {"text": value, "sort": value}


def _number(value: float, form: str) -> Cell:
    return {"text": form.format(value), "sort": value, "number": True}


def chip_of(letter: str, models: Mapping[str, Sequence[str]]) -> Cell:
    """Return a model's letter as a cell: which fill it has, if several runs gave it."""
    shared = [name for name, runs in models.items() if len(runs) > 1]
    fill = shared.index(letter) % 6 if letter in shared else None
    return {"chip": letter, "fill": fill, "sort": (len(letter), letter)}


def _quality(
    found: Found, model: str, between: judge.Interval | None, domain: judge.Interval
) -> Cell:
    value, kind = value_of(found, model), found.kind
    cell = _number(value, "{}") | {"text": kind.text(kind.main, value)}
    if between:
        low, high = (kind.text(kind.main, end) for end in between)
        cell["between"] = f"{low.removesuffix('%') if high.endswith('%') else low}{TO}{high}"
        if domain[0] <= value <= domain[1]:
            cell["drawn"] = charts.draw_interval(value, *between, domain)
    title = title_of(found, model)
    notes = [
        beside_of(found, model),
        "" if title in ("last epoch", "mean of the last 3") else title,
    ]
    if any(notes):
        cell["note"] = ", ".join(filter(None, notes))
    return cell


def _costs(found: Found, check: Check | None) -> dict[str, Cell]:
    assert found.training
    cells = {"seconds": _number(found.training.seconds, "{:,.1f}")}
    most = found.training.peak_memory
    cells["memory"] = _number(most, "{}") | {"text": megabytes(most)}
    sent = sum(found.training.bytes_sent)
    cells["sent"] = _number(sent, "{}") | {"text": megabytes(sent)}
    if rate := judge.rates(found):
        middle, low, high = rate
        doubts = judge.doubts(found, check)
        cells["rate"] = _number(middle, "{:,.0f}") | {
            "between": f"{low:,.0f}{TO}{high:,.0f}",
            "doubt": "; ".join(doubts),
        }
    return cells


def _domain(
    intervals: Mapping[tuple[str, str], judge.Interval | None], poor: set[str]
) -> judge.Interval:
    """Return from where to where intervals are drawn: those of runs that have learned something,
    if there are any, for one that has not makes all others points."""
    every = {key: pair for key, pair in intervals.items() if pair}
    pairs = [pair for (name, _), pair in every.items() if name not in poor] or [*every.values()]
    return (min(low for low, _ in pairs), max(high for _, high in pairs)) if pairs else (0, 1)


def seeds_of(found: Sequence[Found]) -> dict[str, Any]:
    """Return the table of settings over seeds, and which of them is best."""
    done = [one for one in found if one.metrics]
    if not done:
        return {"head": [], "rows": [], "best": 0, "said": [], "ranked": False}
    runs, kind = ranking.table_of(done), done[0].kind
    table = groups(runs, kind)
    shown = for_person(table, kind)
    names = [*map(str, shown)]
    best = 0
    if ranked := VALIDATION in names:  # by what they are ranked comes before the test set's figures
        there = [VALIDATION, validated(kind)]
        names = [name for name in names if name not in there]
        at = names.index("runs") + 1
        names[at:at] = there
        mean = table[f"{VALIDATION}_mean"]
        best = int((mean == mean[0]).sum()) if len(table) > 1 else 0
    titles = {
        f"{name}_{model}": f"{kind.title(name)}, {last_of(done) if model == 'last' else model}"
        for name in kind.compared
        for model in MODELS
    }
    rows = shown[names].to_numpy()
    return {
        "head": [titles.get(name, name.replace("_", " ")) for name in names],
        "rows": [[str(cell) for cell in row] for row in rows] if len(table) < len(done) else [],
        "best": best,
        "said": [*filter(None, [*warnings(runs, kind), choice(runs, kind)])],
        "ranked": ranked,
    }


def parts_of(found: Sequence[Found]) -> list[dict[str, Any]]:
    """Return where the time of a step went, a row for each run that was trained."""
    rows: list[dict[str, Any]] = []
    for one in found:
        history = one.history
        names = [n for n in ("compute", "communication", "input") if f"{n}_seconds" in history]
        if not one.training or len(names) < 3:
            continue
        each = one.training.steps / len(history)
        parts = [(n, float(history[f"{n}_seconds"].median()) / each * 1e3) for n in names]
        step = float(history["seconds"].median()) / each * 1e3
        rows.append({"name": one.name, "step": step, "parts": parts})
    most = max((sum(value for _, value in row["parts"]) for row in rows), default=0.0)
    return [{**row, "drawn": charts.draw_parts(row["parts"], most)} for row in rows]
