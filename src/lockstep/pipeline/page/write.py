"""Write the page: what runs left, put together into one file."""

import json
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from lockstep import __version__
from lockstep.errors import UserError
from lockstep.files import write_text
from lockstep.pipeline.groups import listed
from lockstep.pipeline.page import (
    EVERY,
    NAME,
    TEMPLATES,
    answers,
    collect,
    facts,
    machine,
    mistakes,
    scaling,
    series,
    tables,
)
from lockstep.pipeline.page.collect import Found
from lockstep.progress import duration


def write_page(results: Path, names: Iterable[str] | None = None, live: bool = False) -> bool:
    """Write index.html to the folder `results`, of whatever is there.

    Args:
        results: the folder with the runs' folders.
        names: the runs, in their order; None takes those that are there.
        live: whether it will be written again soon, so that the page shall load itself again.

    Returns:
        Whether every run is done.

    Raises:
        UserError: there is no run in it.
    """
    now = time.time()
    found = collect.collect(results, names)
    if not found:
        raise UserError(f"{results}: no run is in it; take the folder that has the runs' folders")
    is_open = any(one.is_open for one in found)
    write_text(results / NAME, make_page(results, found, now, live and is_open))
    return not is_open


def make_page(results: Path, found: list[Found], now: float, live: bool) -> str:
    """Return the page of some runs as text.

    Args:
        results: their folder, to which addresses in the page are relative.
        found: the runs.
        now: the time, in Unix seconds.
        live: whether the page shall load itself again.
    """
    checks = collect.read_checks(results)
    kind = found[0].kind
    errors = {one.name: of for one in found if (of := mistakes.errors_of(one))}
    trained = [one for one in found if one.training]
    of_runs = {one.name: one.training.classes for one in trained if one.training}
    classes = next(iter(of_runs.values()), [])
    data: dict[str, Any] = {
        "refresh": EVERY if live else 0,
        "unit": kind.unit,
        "main": kind.main,
        "titles": {name: kind.title(name) for name in kind.trained},
        "shares": list(kind.shares),
        "runs": [
            {
                "name": one.name,
                "open": one.is_open,
                "curves": series.curves_of(one),
                **series.speed_of(one),
            }
            for one in found
        ],
        "classes": classes,
        "other_classes": {name: some for name, some in of_runs.items() if some != classes},
        "errors": errors,
        "models": {
            one.name: {model: facts.title_of(one, model) for model in ("last", "averaged")}
            for one in trained
        },
        "pictures": mistakes.pictures(found, errors),
        "diff": series.pairs_of(found),
    }
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("index.html.j2").render(
        title=results.resolve().name,
        version=__version__,
        written=time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now)),
        found=found,
        kind=kind,
        states=Counter(one.state for one in found),
        progress=[_progress(one) for one in found if one.state != "done"],
        answers=answers.answers(found, checks),
        models=facts.same_models(found),
        chip_of=tables.chip_of,
        table=tables.table_of(found, checks),
        seeds=tables.seeds_of(found),
        parts=tables.parts_of(found),
        scaling=scaling.scaling_of(results, found),
        predictions=scaling.predictions_of(results, found),
        times=scaling.TIMES,
        near=scaling.NEAR,
        launches=machine.launches_of(checks),
        runs=machine.files_of(found),
        commands=machine.commands(results, found),
        facts=_facts(trained),
        has={
            name: (results / name).exists() for name in ("report.html", "summary.csv", "groups.csv")
        },
        live=live,
        every=EVERY,
        data=as_script(data),
    )


def as_script(value: Any) -> Markup:
    """Return a value as JSON that can stand in a script element: no character of it ends one."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704


def _progress(found: Found) -> dict[str, Any]:
    """Return how far a run is that is not done: numbers as text, nothing where there is none."""
    newest = found.newest
    share = _divide(newest.get("step"), newest.get("steps"))
    if share is None:
        share = _divide(newest.get("epoch"), newest.get("epochs"))
    if found.state == "evaluating":
        share = 1.0
    kind = found.kind
    metric = newest.get(kind.main)
    return {
        "name": found.name,
        "state": found.state,
        "said": facts.state_of(found),
        "share": min(1.0, max(0.0, share or 0.0)),
        "loss": _text(newest.get("loss"), "{:.4g}"),
        "metric": kind.text(kind.main, metric) if isinstance(metric, int | float) else "",
        "validation": _text(newest.get("validation_loss"), "{:.4g}"),
        "rate": _text(newest.get("rate"), "{:,.0f}"),
        "left": duration(left)
        if found.state == "training" and isinstance(left := newest.get("seconds_left"), int | float)
        else "",
    }


def _divide(part: Any, whole: Any) -> float | None:
    numbers = isinstance(part, int | float) and isinstance(whole, int | float)
    return part / whole if numbers and whole > 0 else None


def _text(value: Any, form: str) -> str:
    return form.format(value) if isinstance(value, int | float) else ""


def _facts(trained: list[Found]) -> list[str]:
    """Return what the line below the title says: data, place and commit."""

    def host(one: Found) -> str:
        assert one.training
        places = [str((place.model_extra or {}).get("host", "")) for place in one.training.ranks]
        return ", ".join(dict.fromkeys(filter(None, places)))

    def commit(one: Found) -> str:
        git = one.training.git if one.training else None
        if not git:
            return ""
        return f"commit {str(git.get('commit'))[:9]}" + (
            ", modified" if git.get("modified") else ""
        )

    def begun(one: Found) -> str:
        return one.training.started[:10] if one.training else ""

    found = [
        facts.unique(trained, lambda one: one.training.dataset if one.training else ""),
        facts.unique(trained, begun),
        facts.unique(trained, host),
        facts.unique(trained, commit),
    ]
    return [listed([name for name in names if name], most=2) for names in found if any(names)]
