"""The records that stages leave for those after them: what is in them, and whether they agree.

A stage takes no file on trust. It compares the SHA-256 of what it reads with what the stage before
wrote down: `average` that of the snapshots, `evaluate` that of the models and of the test set,
`summarize` and `report` that of the tables. So what is put together is of one training.
"""

from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from lockstep.errors import UserError
from lockstep.files import check_sha256, read_json, sealed, unsealed, write_json
from lockstep.pipeline.config import Run, parse
from lockstep.pipeline.data.manifest import Manifest
from lockstep.pipeline.kinds import MODELS, TASKS

T = TypeVar("T", bound="Record")

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
# What a record counts fits a column of int64; no run has taken as many seconds, nor seen as many
# images in one.
Count = Annotated[int, Field(ge=0, lt=2**63)]
Amount = Annotated[float, Field(ge=0, le=1e15, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]

# That of train.json: one more when something in it is another, or means something else.
VERSION: Final = 1
# The key of train.json under which it has its own SHA-256.
SEAL = "record_sha256"


class Record(BaseModel):
    """What a JSON file holds, as far as it is read; there may be more in it."""

    model_config = ConfigDict(frozen=True)


class Described(Record):
    """What a person may want to know: what is read of it has a type, and all of it is kept."""

    model_config = ConfigDict(frozen=True, extra="allow")


class Place(Described):
    """Where one rank ran."""

    processor: str
    device: str


class Arithmetic(Described):
    """What decides which kernels run; all of it is compared, whatever there is."""

    libraries: dict[str, str]
    caps: dict[str, str]


class Segment(Described):
    """A part that a run came in."""

    first_step: Count
    last_step: Count
    started: str
    bytes_sent: list[Count]


class Origin(Record):
    """What train.json says of where a result came from: all that is known before the training."""

    version: Literal[1]
    configuration: Run
    dataset: str
    task: Annotated[str, Field(pattern=f"^({'|'.join(TASKS)})$")]
    data_sha256: dict[str, Sha256]
    classes: list[str]
    shape: Annotated[list[int], Field(min_length=1)]
    outputs: Annotated[Count, Field(gt=0)]
    image: dict[str, Any] | None
    """How images of any size were brought to one."""
    data: str
    mean: list[float]
    std: list[float]
    """A model is fed (value - mean) / std, channel by channel; images are pixels / 255."""
    partition_sha256: Sha256
    partition: str
    partition_edited: bool
    initial_sha256: Sha256
    parameters: Count
    trained_parameters: Count
    """Those that are not frozen: their gradients are what a step sums over the ranks."""
    bfloat16_distance: float | None
    launcher: str
    backend: str
    ranks: Annotated[list[Place], Field(min_length=1)]
    arithmetic: Arithmetic
    versions: dict[str, str]
    code: dict[str, str]
    git: dict[str, Any] | None


class Best(Record):
    """The epoch with the lowest loss on the validation part."""

    epoch: Annotated[Count, Field(gt=0)]
    validation_loss: float


class Training(Origin):
    """train.json."""

    best: Best | None
    """Where there is a validation part. With `keep: best` it is this epoch's weights that are the
    result."""
    stopped_early: bool
    model_sha256: Sha256
    parameters_sha256: Sha256
    buffers_sha256: Sha256 | None
    optimizer_sha256: Sha256
    history_sha256: Sha256
    """Of what is a result in it."""
    history_csv_sha256: Sha256
    """Of the times as well."""
    snapshots_sha256: Sha256
    snapshots: dict[str, Sha256]
    steps: Annotated[Count, Field(gt=0)]
    images_per_second: Amount
    """Samples per second in the median epoch, whatever the task's are."""
    seconds: Amount
    bytes_sent: list[Count]
    peak_memory: Count
    """Bytes that the rank with most of them had at most."""
    checkpoint_pauses: dict[str, Amount]
    started: str
    segments: list[Segment]


class Averaged(Record):
    """averaged.json."""

    snapshots_sha256: Sha256
    model_sha256: Sha256


class ClassMeasured(Record):
    """What a model does with one class of the test set."""

    samples: Count
    correct: Count
    precision: Share
    recall: Share
    f1: Share


class Measured(Record):
    """What a model does with a part of the data: what its task measures of it."""

    loss: float
    accuracy: Share | None = None
    balanced_accuracy: Share | None = None
    macro_f1: Share | None = None
    majority: Share | None = None
    correct: Count | None = None
    per_class: dict[str, ClassMeasured] | None = None
    rmse: float | None = None
    mae: float | None = None
    r2: float | None = None
    perplexity: float | None = None
    perplexity_interval: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None


class Validated(Record):
    """What the models do with the validation part."""

    samples: Count
    last: Measured
    averaged: Measured


class Metrics(Record):
    """metrics.json: of the test set, and of the validation part where there is one."""

    last: Measured
    averaged: Measured
    validation: Validated | None = None
    model_sha256: Sha256
    averaged_sha256: Sha256
    snapshots_sha256: Sha256
    predictions_sha256: Sha256 | None = None
    confusion_sha256: Sha256 | None = None


def write_training(results: Path, training: Training) -> None:
    """Write train.json to the folder `results`, with a digest of its own content."""
    write_json(results / "train.json", sealed(training.model_dump(mode="json"), SEAL))


def read_training(results: Path) -> Training:
    """Read the train.json in `results`.

    Raises:
        UserError: it is missing or damaged, was edited, or is of an older version.
    """
    path, what, do = results / "train.json", "the record of a run of this version", "train again"
    if not path.exists():
        found = sorted(one.parent.name for one in results.glob("*/train.json"))
        what = (
            f"take a run in it: {', '.join(found[:5])}" if found else "take another, or train again"
        )
        raise UserError(f"{path}: No such file; expected {results} to be that of a run; {what}")
    values = read_json(path, what, do)
    training = _checked(Training, values, path, what, do)
    try:
        unsealed(values, SEAL)
    except ValueError as error:
        raise UserError(f"{path}: not {what} ({error}); {do}") from None
    return training


def read_averaged(results: Path, training: Training) -> Averaged:
    """Read the averaged.json in `results`.

    Raises:
        UserError: it is missing or damaged, or of other snapshots than this training's.
    """
    path, do = results / "averaged.json", "run `average` again"
    found = _read(Averaged, path, "the record of an average", do)
    if found.snapshots_sha256 != training.snapshots_sha256:
        raise UserError(f"{path}: not of the snapshots that {results / 'train.json'} lists; {do}")
    return found


def read_metrics(results: Path, training: Training) -> Metrics:
    """Read the metrics.json in `results`; the tables beside it are compared with it.

    Raises:
        UserError: one of them is missing or damaged, or of another training than this one, or of
            another average.
    """
    path, do = results / "metrics.json", "run `evaluate` again"
    found = _read(Metrics, path, "the metrics of a run", do)
    for key in ("model_sha256", "snapshots_sha256"):
        if getattr(found, key) != getattr(training, key):
            raise UserError(f"{path}: not of the training in {results / 'train.json'}; {do}")
    if found.averaged_sha256 != read_averaged(results, training).model_sha256:
        raise UserError(f"{path}: not of the average in {results / 'averaged.json'}; {do}")
    kind = TASKS[training.task]
    keys = [f"{model}.{name}" for model in MODELS for name in kind.measured]
    keys += [f"{table}_sha256" for table in kind.tables]
    for key in keys:
        if attrgetter(key)(found) is None:
            raise UserError(f"{path}: not the metrics of a run ({key}: is missing); {do}")
    for table in kind.tables:
        check_sha256(results / f"{table}.csv", getattr(found, f"{table}_sha256"), path, do)
    return found


def check_trained_on(training: Training, results: Path, manifest: Manifest, data: Path) -> None:
    """Refuse other data than those that a run was trained on.

    Raises:
        UserError: they are others.
    """
    here = manifest.sha256, manifest.mean, manifest.std, manifest.class_names
    if here != (training.data_sha256, training.mean, training.std, training.classes):
        raise UserError(
            f"{data / 'manifest.json'}: not of the data that {results / 'train.json'} was trained "
            f"on; say by --data where those are, or prepare and train again"
        )


def _read(kind: type[T], path: Path, what: str, do: str) -> T:
    return _checked(kind, read_json(path, what, do), path, what, do)


def _checked(kind: type[T], values: dict[str, Any], path: Path, what: str, do: str) -> T:
    try:
        found: T = parse(kind, values, "")
    except UserError as error:
        raise UserError(f"{path}: not {what} ({error}); {do}") from None
    return found
