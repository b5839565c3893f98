"""Runs as settings over seeds, in the order of the validation part where there is one."""

from collections.abc import Sequence

import pandas as pd

from lockstep.pipeline.config import UPKEEP, Run
from lockstep.pipeline.groups import ASKED, NONE, VALIDATION, quality, validated
from lockstep.pipeline.page.collect import Found
from lockstep.strategies import catalogue

# Of what a run is set to, that which may change its results.
SETTINGS = [name for name in Run.model_fields if name not in {*UPKEEP, "oversubscribe"}]


def settings_of(found: Found) -> dict[str, str]:
    """Return a run's settings as text; "" is what its strategy does not read."""
    if not found.training:
        return {}
    run = found.training.configuration
    own = catalogue.of(run).settings
    values = run.model_dump()
    return {
        name: ""
        if name in ASKED and name not in own
        else NONE
        if values[name] is None
        else f"{values[name]}"
        for name in SETTINGS
    }


def is_validated(found: Sequence[Found]) -> bool:
    """Return whether all of some runs have a validation part, so that it can rank them."""
    return bool(found) and all(one.metrics and one.metrics.validation for one in found)


def table_of(done: Sequence[Found]) -> pd.DataFrame:
    """Return a row for each run that is done: its settings, and what is compared of its models."""
    kind = done[0].kind
    rows = []
    for one in done:
        assert one.metrics and one.training
        row: dict[str, object] = {"run": one.name, **settings_of(one)}
        row["model_sha256"] = one.training.model_sha256
        rows.append(row | quality(one.metrics, kind))
    table = pd.DataFrame(rows)
    if is_validated(done):
        return table
    return table.drop(columns=[VALIDATION, validated(kind)], errors="ignore")


def runs_of(table: pd.DataFrame, row: int, done: Sequence[Found]) -> list[Found]:
    """Return the runs that have the setting of a row."""
    names = list(table.columns[: list(table.columns).index("runs")])
    wanted = {name: table[name].iloc[row] for name in names}
    return [one for one in done if wanted.items() <= settings_of(one).items()]
