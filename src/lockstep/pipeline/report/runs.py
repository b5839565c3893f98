"""runs.html: the table of all runs, and which of them gave the same model, bit for bit."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from html import escape
from typing import Any

import pandas as pd

from lockstep.pipeline.groups import (
    CHANCE,
    SMALLEST,
    VALIDATION,
    at_chance,
    choice,
    for_person,
    groups,
    letters,
    outcomes,
    validated,
)
from lockstep.pipeline.kinds import CLASSIFICATION, MODELS, Kind
from lockstep.pipeline.report import style
from lockstep.pipeline.report.page import make_list, make_page, make_table
from lockstep.strategies import catalogue

HASH = "model_sha256"
SINGLE = "as_single"
# How ranks share the work of a run, beside its ranks: one strategy is the reference for all of it.
SHARING = {"strategy", "backend", "init_method", "device"}
SHARING |= {name for one in catalogue.ALL for name in one.settings}
TITLES = {
    HASH: "model hash",
    SINGLE: f"as {catalogue.REFERENCE}?",
    "loss": "loss, last",
    "peak_memory": "peak MB",
    "bytes_sent": "MB sent",
}
FORMATS: dict[str, Callable[[Any], str]] = {
    "loss": "{:.4f}".format,
    "seconds": "{:,.2f}".format,
    "peak_memory": lambda most: f"{float(most) / 1e6:,.0f}" if most else "",
    "bytes_sent": lambda sent: f"{sent / 1e6:,.2f}",
    VALIDATION: "{:.4f}".format,
}
NOTE = """<p class="note">Runs with the same letter have the same model, bit for bit; a hollow
letter is a model that one run alone gave. Point at a hash to see all of it.</p>"""
# Fills on which white or black letters are read; models beyond them take them from the start,
# and are told apart by their letters.
FILLS = [
    (style.BLUE, "white"),
    (style.ORANGE, "black"),
    (style.GREEN, "white"),
    (style.PURPLE, "black"),
    (style.SKY, "black"),
    (style.RED, "white"),
]


def page_of_runs(table: pd.DataFrame, kind: Kind = CLASSIFICATION) -> str:
    """Return the page of a table of runs of a task."""
    chips = make_chips(table[HASH])
    # What comes out of a run; every other column but its name and its ranks went into it.
    results = outcomes(kind)
    of_settings = _settings_page(table, kind)
    inputs = [name for name in table.columns if name not in ("run", "ranks", *results)]
    titles, formats = TITLES | {kind.rate: f"{kind.unit}/s"}, dict(FORMATS)
    formats[kind.rate] = "{:,.0f}".format
    formats[validated(kind)] = partial(kind.text, kind.main)
    for name in kind.compared:
        for model in MODELS:
            titles[f"{name}_{model}"] = f"{kind.title(name)}, {model}"
            formats[f"{name}_{model}"] = partial(kind.text, name)
    sentences = [*read_baseline(table, kind), *read_bits(table, inputs, chips)]
    sentences += read_replicas(table, kind)
    # The baseline is in a sentence where it matters.
    table = table.drop(columns=[kind.baseline, SMALLEST, CHANCE], errors="ignore")
    if any(found := compare_with_single(table, inputs)):
        table = table.assign(**{SINGLE: found})
    # What is the same in every run would push what is not out of the window.
    same = [name for name in inputs if table[name].nunique() == 1]
    first = [name for name in ("run", HASH, SINGLE) if name in table]
    columns = [*first, *(name for name in table.columns if name not in (*first, *same))]
    numbers = {
        at: "number"
        for at, name in enumerate(columns)
        if name in formats or pd.api.types.is_numeric_dtype(table[name])
    }
    settings = ", ".join(f"{_title(name)} {table[name].iloc[0]}" for name in same)
    rows = [
        [_cell(name, row[name], chips, formats) for name in columns]
        for row in table.to_dict("records")
    ]
    which = "In all runs" if len(table) > 1 else "In this run"
    gave = "one model" if len(chips) == 1 else f"{len(chips)} different models"
    return make_page(
        "Runs",
        f"<p>{len(table)} runs gave {gave}.</p>" if len(table) > 1 else "",
        make_list(sentences),
        make_table((_title(name, titles) for name in columns), rows, numbers),
        f'<p class="note">{which}: {escape(settings)}.</p>' if same else "",
        NOTE,
        *of_settings,
    )


def _settings_page(table: pd.DataFrame, kind: Kind) -> list[str]:
    """Return the table of settings, where one has several seeds, and which is best."""
    parts, found = [], groups(table, kind)
    if (found["runs"] > 1).any():
        shown = for_person(found, kind)
        titles = {f"{n}_{m}": f"{kind.title(n)}, {m}" for n in kind.compared for m in MODELS}
        measured = (*titles, VALIDATION, validated(kind))
        numbers = {at: "number" for at, name in enumerate(shown) if name in measured}
        parts = [
            "<h2>Settings, over seeds</h2><p>Mean ± standard deviation.</p>",
            make_table(
                (_title(str(name), titles) for name in shown),
                [[escape(str(cell)) for cell in row] for row in shown.to_numpy()],
                numbers,
            ),
        ]
    said = choice(table, kind)
    return [*parts, *([f"<p>{escape(said)}</p>"] if said else [])]


def make_chips(hashes: pd.Series) -> dict[str, str]:
    """Return a letter for each model, as HTML; those that several runs gave are filled."""
    counts = hashes.value_counts()
    chips = {}
    shared = 0
    for digest, letter in letters(hashes).items():
        look = f"color: {style.GREY}; border-color: {style.PALE}"
        if counts[digest] > 1:
            fill, ink = FILLS[shared % len(FILLS)]
            look = f"color: {ink}; background: {fill}; border-color: {fill}"
            shared += 1
        chips[digest] = f'<span class="chip" style="{look}">{letter}</span>'
    return chips


def read_bits(table: pd.DataFrame, inputs: list[str], chips: dict[str, str]) -> list[str]:
    """Return sentences (HTML) that say which runs gave the same model."""
    groups = [group for _, group in table.groupby(inputs, sort=False)]
    several = [group for group in groups if len(group) > 1]
    telling = [name for name in inputs if len({group[name].iloc[0] for group in several}) > 1]
    sentences = []
    for group in several:
        setting = ", ".join(filter(None, (_setting(name, group) for name in telling)))
        differ = "only" if group["ranks"].is_unique else "at most"
        models = list(group[HASH].unique())
        gave = "one and the same model" if len(models) == 1 else f"{len(models)} different models"
        sentences.append(
            (f"<b>{escape(setting)}:</b> " if setting else "")
            + f"{escape(join(group['run']))} differ {differ} in the number of ranks "
            f"({join(map(str, group['ranks']))}), and gave {gave} "
            + f'<span class="chips">{"".join(chips[digest] for digest in models)}</span>'
        )
    for digest, alike in table.groupby(HASH, sort=False):
        differing = [name for name in inputs if alike[name].nunique() > 1]
        if differing:
            sentences.append(
                f"{escape(join(alike['run']))} differ in {escape(join(map(_title, differing)))} as "
                f"well, and gave the same model {chips[str(digest)]}"
            )
    if not sentences:
        sentences.append(
            "No two of these runs differ only in the number of ranks. Give one of them a second "
            "row with other <code>ranks</code>, and this page says whether the bits are the same."
        )
    return sentences


def compare_with_single(table: pd.DataFrame, inputs: list[str]) -> list[str]:
    """Return for each run whether its model is that of the strategy `single`: yes, no, or nothing
    where there is no such run with the same settings, or it is that run."""
    work = [name for name in inputs if name not in SHARING]
    rows = table.to_dict("records")
    known = {
        tuple(str(row[name]) for name in work): row[HASH]
        for row in rows
        if row["strategy"] == catalogue.REFERENCE
    }
    found = []
    for row in rows:
        reference = known.get(tuple(str(row[name]) for name in work))
        said = "yes" if row[HASH] == reference else "no"
        found.append(said if reference and row["strategy"] != catalogue.REFERENCE else "")
    return found


def read_replicas(table: pd.DataFrame, kind: Kind = CLASSIFICATION) -> list[str]:
    """Return a sentence (HTML) for each run whose replicas met only after training."""
    if "sync_every" not in table:
        return []
    return [
        f"{escape(row['run'])}'s last model is the replica of shard 0, which no other shard has "
        f"helped: {kind.text(kind.main, row[f'{kind.main}_last'])}. The mean of all "
        f"{row['shards']} replicas, its averaged model, has "
        f"{kind.text(kind.main, row[f'{kind.main}_averaged'])}"
        for row in table[table["sync_every"].astype(str) == "0"].to_dict("records")
    ]


def read_baseline(table: pd.DataFrame, kind: Kind = CLASSIFICATION) -> list[str]:
    """Return a sentence (HTML) for each run whose last model is no better than one that always
    says the largest class: by balanced accuracy where classes are of very different sizes."""
    if kind.baseline not in table:
        return []
    poor = table[at_chance(table, kind)]
    return [
        f"<b>{escape(row['run'])} is no better than the largest class:</b> its last model's "
        f"{escape(kind.title(kind.main))} is {kind.text(kind.main, row[f'{kind.main}_last'])}, and "
        f"always saying the largest class has {kind.text(kind.main, row[kind.baseline])}; its "
        f"balanced accuracy is {kind.text(kind.main, row['balanced_accuracy_last'])}"
        + (
            ". Where classes are of very different sizes, try <code>class_weights: balanced</code>"
            if row.get("class_weights") in (None, "", "none")
            else ", which is what <code>class_weights</code> are for"
        )
        for row in poor.to_dict("records")
    ]


def join(names: Iterable[str]) -> str:
    """Return "a", "a and b" or "a, b and c"."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _cell(
    name: str, value: Any, chips: dict[str, str], formats: Mapping[str, Callable[[Any], str]]
) -> str:
    if name == HASH:
        return f'{chips[value]}<code title="{escape(value)}">{escape(value[:12])}</code>'
    return escape(formats[name](value) if name in formats else str(value))


def _title(name: str, titles: Mapping[str, str] = TITLES) -> str:
    return titles.get(name, name.replace("_", " "))


def _setting(name: str, group: pd.DataFrame) -> str:
    """Return what a group has for a setting: a number needs its name, and no value no word."""
    value = group[name].iloc[0]
    return value if isinstance(value, str) else f"{_title(name)} {value}"
