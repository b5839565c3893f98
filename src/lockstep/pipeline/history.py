"""history.csv, a row an epoch: which of its columns are results, and which are times."""

from typing import TYPE_CHECKING

from lockstep.pipeline.kinds import TASKS

if TYPE_CHECKING:
    import pandas as pd

# The columns that are times, as is how fast it was; the others are results.
TIMES = ["seconds", "input_seconds", "compute_seconds", "communication_seconds", "idle_seconds"]
# One that is there where there is a validation part: it is no part of the seconds.
VALIDATION = "validation_seconds"


def without_times(history: "pd.DataFrame", task: str) -> "pd.DataFrame":
    """Return what is a result in a history of a task."""
    return history.drop(columns=[n for n in history if n in (*TIMES, VALIDATION, TASKS[task].rate)])
