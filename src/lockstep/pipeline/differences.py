"""What two runs have not alike: what was asked for, with what, and what came of it; no torch."""

from typing import TYPE_CHECKING, Any

from lockstep import provenance
from lockstep.errors import in_words
from lockstep.pipeline.record import Training
from lockstep.strategies import catalogue

if TYPE_CHECKING:
    import pandas as pd

# What is compared: its name for a person, and in the record.
RESULTS = {
    "weights": "parameters_sha256",
    "BatchNorm statistics": "buffers_sha256",
    "optimizer state": "optimizer_sha256",
    "history": "history_sha256",
    "snapshots": "snapshots_sha256",
}
# What the result of `train` is made with; the other versions are of what only carries it.
PACKAGES = ("python", *provenance.LIBRARIES, "pandas")


def circumstances(record: Training) -> dict[str, Any]:
    """Return what may change the bits, by its name for a person, apart from the code."""
    run = record.configuration
    return {
        **{name: record.versions.get(name) for name in PACKAGES},
        "initial weights": record.initial_sha256,
        # Over which the promised sums are the same.
        **({} if catalogue.of(run).keeps_bits else {"backend": record.backend}),
        **{name.replace("_", " "): value for name, value in record.arithmetic},
        **{
            name: ", ".join(sorted({getattr(place, name) for place in record.ranks}))
            for name in ("processor", "device")
        },
    }


def causes(first: Training, second: Training) -> list[tuple[str, str, str, str]]:
    """Return what two runs were not trained from alike, apart from the code: what kind of thing,
    which, and what the first and the second have."""
    return [
        (title, name, in_words(a), in_words(b))
        for title, of in (
            ("configuration", lambda training: training.configuration.model_dump()),
            ("data", _data),
            ("circumstances", circumstances),
        )
        for name, (a, b) in provenance.differences(of(first), of(second)).items()
    ]


def code(first: Training, second: Training) -> str:
    """Return the names of the code that two runs were not trained with alike, or nothing."""
    return provenance.other_code(first.code, second.code)


def results(first: Training, second: Training) -> dict[str, bool]:
    """Return of each thing that a training gives whether two runs have the same bits."""
    found = {name: (getattr(first, key), getattr(second, key)) for name, key in RESULTS.items()}
    return {name: a == b for name, (a, b) in found.items() if (a, b) != (None, None)}


def begins(first: "pd.DataFrame", second: "pd.DataFrame") -> str:
    """Return from which epoch on two histories, without times, differ, and in what first."""
    columns = [name for name in first if name in second]
    for row in range(min(len(first), len(second))):
        for name in columns:
            a, b = first[name][row], second[name][row]
            if a != b and not (a != a and b != b):  # two that are no numbers are alike
                return f"from epoch {row + 1} on: {name} is {a} | {b}"
    if len(first) != len(second):
        return f"alike as far as both go: {len(first)} and {len(second)} epochs"
    return "the same in every epoch"


def _data(training: Training) -> dict[str, Any]:
    return {
        "dataset": training.dataset,
        "classes": training.classes,
        "shape": training.shape,
        "shards": training.partition_sha256,
        **training.data_sha256,
    }
