"""What is learned, as far as it can be said without torch: a declaration of each task.

What a task does with tensors is in the module of its name in `lockstep.pipeline.tasks`, and `make`
there makes it. A stage asks the declaration, or what was made; none asks for a task by its name.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lockstep.errors import UserError

Shape = tuple[int, ...]

# A run's two models, and their files in its folder.
MODELS = {"last": "model.safetensors", "averaged": "averaged.safetensors"}


@dataclass(frozen=True)
class Array:
    """A file of a prepared part, `name`.npy: samples in the order of the others."""

    name: str
    dtypes: tuple[str, ...]
    dimensions: range
    """How many there may be, that of the samples with them."""


@dataclass(frozen=True)
class Kind:
    """What stages want to know of a task."""

    name: str
    unit: str
    """What a sample is, in the plural: a word for messages and for columns."""
    arrays: tuple[Array, ...]
    """The files of a part: inputs, then targets; a single one holds both, a column apart."""
    layout: str
    """The same in words."""
    integers: bool
    """Whether inputs are integers below the number of outputs, and no floats."""
    classes: bool
    """Whether each sample has one of some classes that have names."""
    outputs: Callable[[Shape, int], Shape]
    """The shape of what a model makes of a sample, from the sample's and the number of outputs."""
    counted: str
    """What the number of outputs counts."""
    meaning: str
    """What that is, in words."""
    trained: tuple[str, ...]
    """The columns of history.csv beside the loss."""
    measured: tuple[str, ...]
    """What metrics.json has of a model beside the loss."""
    compared: tuple[str, ...]
    """Those that the table of runs has of both models; the first one is drawn."""
    tables: tuple[str, ...]
    """The tables that `evaluate` leaves beside metrics.json."""
    figures: tuple[str, ...]
    """The figures of a run beside its curves and its time."""
    titles: Mapping[str, str] = field(default_factory=dict)
    """What a person reads for the name of a metric, where it is another."""
    shares: tuple[str, ...] = ()
    """The metrics that are shares of 1."""
    beside: str = ""
    """What a person is told beside the main metric, which alone says little: it has no scale."""
    baseline: str = ""
    """What metrics.json has of who learns nothing, in the main metric."""
    unfit: tuple[str, ...] = ()
    """Keys of a run that say nothing here."""
    models: tuple[str, ...] = ()
    """The models by name that can learn it; empty: all that take floats."""

    @property
    def main(self) -> str:
        """The metric that is drawn."""
        return self.compared[0]

    @property
    def validated(self) -> tuple[str, ...]:
        """What history.csv has of the validation part, beside the loss."""
        return tuple(dict.fromkeys((*self.trained, *self.compared)))

    @property
    def rate(self) -> str:
        """The column of how fast a training was."""
        return f"{self.unit}_per_second"

    @property
    def figured(self) -> tuple[str, ...]:
        """The columns of the table of runs that say how good the models are."""
        both = (f"{name}_{model}" for name in self.compared for model in MODELS)
        return (*both, *filter(None, [self.baseline]), "loss")

    def title(self, name: str) -> str:
        """Return what a person reads for the name of a metric."""
        return self.titles.get(name, name)

    def text(self, name: str, value: float) -> str:
        """Return a metric's value for a person."""
        return f"{value:.2%}" if name in self.shares else f"{value:.4g}"

    def check(self, run: Any) -> None:
        """Refuse a run's configuration that this task cannot follow.

        Raises:
            UserError: the key, its value and the cure.
        """
        for key in self.unfit:
            value = getattr(run, key)
            if value != type(run).model_fields[key].default:
                raise UserError(
                    f"{key}: {value} is for images with classes, not for {self.name}; leave it away"
                )
        if self.models and ":" not in run.model and run.model not in self.models:
            raise UserError(
                f"model: {run.model!r} does not take the {self.unit} of {self.name}; take "
                f"{', '.join(self.models)}, or package.module:function of your own"
            )
        self.check_scheme(run.scheme)

    def check_scheme(self, scheme: str) -> None:
        """Refuse a scheme of `partition` that wants classes where there are none.

        Raises:
            UserError: it does.
        """
        if scheme in ("dirichlet", "balanced") and not self.classes:
            raise UserError(
                f"scheme: {scheme!r} is about classes, and {self.name} has none; take iid, or "
                f"contiguous"
            )


# Keys of a run that say nothing without images and classes.
FOR_IMAGES = (
    *("shift", "flip", "crop", "augment", "jitter", "erase", "mixup", "cutmix"),
    *("label_smoothing", "class_weights"),
)

CLASSIFICATION = Kind(
    name="classification",
    unit="images",
    arrays=(Array("images", ("uint8",), range(4, 5)), Array("labels", ("int64",), range(1, 2))),
    layout="uint8 images of N x H x W x C and N int64 labels",
    integers=False,
    classes=True,
    outputs=lambda shape, outputs: (outputs,),
    counted="classes",
    meaning="a score for each class",
    trained=("accuracy",),
    measured=("accuracy", "balanced_accuracy", "macro_f1", "majority", "correct", "per_class"),
    compared=("accuracy", "balanced_accuracy"),
    baseline="majority",
    tables=("predictions", "confusion"),
    figures=("confusion", "shards"),
    titles={"balanced_accuracy": "balanced accuracy", "macro_f1": "macro F1"},
    shares=("accuracy", "balanced_accuracy", "macro_f1"),
)
REGRESSION = Kind(
    name="regression",
    unit="samples",
    arrays=(
        Array("inputs", ("float32", "uint8"), range(2, 65)),
        Array("targets", ("float32",), range(2, 3)),
    ),
    layout="float32 or uint8 inputs of N x ... and float32 targets of N x K",
    integers=False,
    classes=False,
    outputs=lambda shape, outputs: (outputs,),
    counted="targets",
    meaning="a number for each target",
    trained=("rmse", "mae"),
    measured=("rmse", "mae", "r2"),
    compared=("rmse", "r2"),
    tables=("predictions",),
    figures=(),
    titles={"rmse": "root mean squared error", "r2": "R²"},
    beside="r2",
    unfit=FOR_IMAGES,
)
LANGUAGE = Kind(
    name="language",
    unit="sequences",
    arrays=(Array("tokens", ("int32",), range(2, 3)),),
    layout="int32 tokens of N x T",
    integers=True,
    classes=False,
    outputs=lambda shape, outputs: (*shape, outputs),
    counted="tokens in the vocabulary",
    meaning="a score for each token of the vocabulary at each place",
    trained=("perplexity", "accuracy"),
    measured=("perplexity", "accuracy"),
    compared=("perplexity", "accuracy"),
    tables=(),
    figures=(),
    shares=("accuracy",),
    unfit=FOR_IMAGES,
    models=("gpt",),
)
TASKS = {kind.name: kind for kind in (CLASSIFICATION, REGRESSION, LANGUAGE)}


def of_columns(columns: Iterable[str]) -> Kind:
    """Return the task whose runs a table with these columns is of.

    Raises:
        ValueError: there is none.
    """
    names = {*columns}
    for kind in TASKS.values():
        if {*kind.figured, kind.rate} <= names:
            return kind
    raise ValueError(f"no task has a table of {', '.join(sorted(names))}")
