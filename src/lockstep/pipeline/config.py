"""The configuration: what a user may set, what it means, and which combinations make sense.

The models below are the only list of keys. The flags of `lockstep train` are made from them
(`lockstep.pipeline.cli`), and so are the JSON schemas in workflow/schemas (`make schemas`).
"""

import difflib
import hashlib
import json
import os
import re
import reprlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from lockstep.checkpoint import PATTERN, period
from lockstep.errors import UserError
from lockstep.strategies import catalogue

# What is larger than these is a slip of the pen, and would run for ever, or overflow somewhere.
MOST_RANKS = 2**20  # also shards: messages list divisors, and every rank knows of every other
MOST_THREADS = 4096  # no machine has as many cores
MOST_EPOCHS = 100_000  # each checkpoint has a row of history for each, some 20 MB in all
MOST_OF_ANYTHING = (
    10**9
)  # counts fit an int32, and learning rates and their like the square of a float32
DAY, MONTH = 86_400.0, 30 * 86_400.0  # seconds; torch counts milliseconds, and no job is as long


def numbers_of(text: str) -> list[float]:
    """Return the numbers in a text like `1,2.5,1`.

    Raises:
        ValueError: it is none, or one of them is of no use as a weight.
    """
    try:
        numbers = [float(word) for word in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(1 / MOST_OF_ANYTHING <= n <= MOST_OF_ANYTHING for n in numbers):
        raise ValueError(
            f"expected none, balanced, or a number above 0 for each class with commas between "
            f"them, not {text!r}"
        )
    return numbers


class Strict(BaseModel):
    """A section of the configuration: unknown keys are errors, values do not change."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        kind = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and kind is not bool:
            raise ValueError(f"expected {getattr(kind, '__name__', kind)}, not {value}")
        return value


class Dataset(Strict):
    """What to train on."""

    name: Literal[
        "digits",
        "mnist",
        "fashion_mnist",
        "kmnist",
        "cifar10",
        "cifar100",
        "imagefolder",
        "table",
        "npz",
        "function",
    ] = "digits"
    """A dataset that Lockstep knows, or the form of your own: `imagefolder` (a folder of images
    for each class), `table` (a CSV or Parquet of images with labels), `npz` (a file with arrays,
    which `task` names) or `function` (of yours, which yields images with labels)."""

    task: Literal["classification", "regression", "language"] = "classification"
    """What is learned from an `npz`: a class of each image; numbers (arrays `inputs` and
    `targets`); or the next token (an array `tokens`)."""

    path: str | None = None
    """Where your own dataset lies: the folder of an `imagefolder`, the file of a `table` (or a
    folder of Parquet files) or of an `npz`, the `package.module:function`."""

    mirror: str | None = Field(default=None, pattern=r"^https?://")
    """An address that holds the dataset's files under their original names. Only it is asked then:
    a site without internet serves its own."""

    test_fraction: float = Field(default=0.2, gt=0, lt=1)
    """The share of each class that is kept for testing, where the dataset has no test part of its
    own."""

    validation_fraction: float = Field(default=0.0, ge=0, lt=1)
    """The share of each class that is kept for validation, where the dataset has no such part of
    its own: to stop, and to choose among runs, by other samples than those of the test."""

    group: str | None = None
    """A column of a `table`, such as the patient: samples that have the same in it are kept in one
    part. Classes have about the same share in each."""

    size: str | None = Field(default=None, pattern=r"^[1-9][0-9]{0,3}(x[1-9][0-9]{0,3})?$")
    """The size that images of an `imagefolder` or `table` are brought to: `224`, or rows and
    columns, `[192, 256]`. Without it all must have one."""

    resize: Literal["crop", "pad", "stretch"] = "crop"
    """How: by the middle of the image (`crop`), with black beside the whole of it (`pad`), or out
    of proportion (`stretch`)."""

    colour: Literal["auto", "rgb", "grey"] = "auto"
    """What becomes of colours: three channels (`rgb`), or one (`grey`). `auto` leaves images as
    they are, and all must be alike."""

    bad: Literal["refuse", "skip"] = "refuse"
    """What becomes of files that are no images: `prepare` stops and names them, or leaves them out
    and lists them in the manifest."""

    @field_validator("size", mode="before")
    @classmethod
    def _of_sides(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if isinstance(value, list | tuple) and len(value) == 2:
            value = "x".join(map(str, value))
        if not isinstance(value, str):
            return value
        height, _, width = value.replace(" ", "").partition("x")
        return height if height == width else value.replace(" ", "")

    @property
    def height_width(self) -> tuple[int, int] | None:
        """The rows and columns that images are brought to, in pixels."""
        if self.size is None:
            return None
        height, _, width = self.size.partition("x")
        return int(height), int(width or height)

    @model_validator(mode="after")
    def _path_belongs_to_own_datasets(self) -> "Dataset":
        own = self.name in ("imagefolder", "table", "npz", "function")
        if own != (self.path is not None):
            verb = "needs" if own else "takes no"
            raise ValueError(f"the dataset {self.name!r} {verb} key 'path'")
        if self.task != "classification" and self.name != "npz":
            raise ValueError(f"task: {self.name!r} is of classification; {self.task} takes an npz")
        if self.path is not None and re.search("[{}]", self.path):
            raise ValueError(f"path: Snakemake takes braces for wildcards, not {self.path!r}")
        if self.name == "function" and not re.fullmatch(r"[\w.]+:\w+", self.path or ""):
            raise ValueError(f"path: expected package.module:function, not {self.path!r}")
        if self.test_fraction + self.validation_fraction >= 1:
            raise ValueError("test_fraction: with validation_fraction it leaves nothing to train")
        if self.group is not None and self.name != "table":
            raise ValueError(f"group: is a column of a table, and {self.name!r} has none")
        if self.name not in ("imagefolder", "table"):
            for key in ("size", "resize", "colour", "bad"):
                if getattr(self, key) != type(self).model_fields[key].default:
                    raise ValueError(f"{key}: is for image files; {self.name!r} takes no such key")
        return self

    @property
    def id(self) -> str:
        """The name of the dataset's folder under data/: others of the same name have another."""
        if self.path is None:
            return self.name
        values = self.model_dump(exclude={"mirror"})
        digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
        return f"{self.title}-{digest[:6]}"

    @property
    def title(self) -> str:
        """What a person calls the dataset."""
        if self.path is None:
            return self.name
        return f"{self.name}-{re.sub(r'[^A-Za-z0-9_.-]', '_', Path(self.path).name)}"


class Defaults(Strict):
    """What a run may set, and what it has where it does not."""

    shards: int = Field(default=4, ge=1, le=MOST_RANKS)
    """S, the number of disjoint parts of the training set. The result depends on it."""

    scheme: Literal["iid", "stratified", "contiguous", "dirichlet", "balanced"] = "stratified"
    """How samples are assigned to shards: at random, at random within each class, in the order of
    the files, or with classes skewed by `alpha`."""

    alpha: float = Field(default=0.5, gt=0, le=MOST_OF_ANYTHING)
    """The concentration of the `dirichlet` scheme: small is skewed, large is even."""

    seed: int = Field(default=0, ge=0, lt=2**63)
    """The one seed: of the partition, the initial weights, the order, augmentation and dropout."""

    model: str = "cnn"
    """`cnn`, `linear`, `mlp`, the name of a torchvision classifier (`resnet50`), `gpt` for
    language, or `package.module:function` of your own, called with the input's shape, (C, H, W) of
    an image, and the number of outputs: classes, targets, or tokens."""

    weights: str | None = Field(default=None, min_length=1)
    """What the model begins with, in place of weights that are drawn: a .safetensors or .pth file,
    or weights of torchvision's by name, `torchvision:IMAGENET1K_V1`. The last layer is drawn anew
    where its shape is another."""

    normalize: Literal["auto", "data", "imagenet"] = "auto"
    """What images are brought to mean 0 and deviation 1 by: the training set's own (`data`) or
    ImageNet's, which weights that were trained on that want. `auto`: those for torchvision's
    weights, else the data's."""

    freeze: str | None = Field(default=None, min_length=1)
    """What stays as it is: `backbone`, all but the last layer; or prefixes of parameters' names,
    with commas between them (`conv1,layer1`)."""

    backbone_lr: float = Field(default=1.0, gt=0, le=MOST_OF_ANYTHING)
    """The learning rate of all but the last layer, as a share of `lr`."""

    strategy: Literal[tuple(catalogue.ABOUT)] = Field(  # type: ignore[valid-type]
        default=catalogue.DEFAULT,
        description="; ".join(f"`{name}`: {about}" for name, about in catalogue.ABOUT.items()),
    )

    reduction: Literal["tree", "fast"] = "tree"
    """How `sync_sgd` sums gradients: along a fixed `tree` over the shards, which gives the same
    bits at any number of ranks, or by one all-reduce over the ranks (`fast`)."""

    sync_every: int = Field(default=8, ge=0, le=MOST_OF_ANYTHING)
    """The steps of `local_sgd` from one average of the replicas to the next; 0: they are averaged
    once, after training, by `average`."""

    stages: int = Field(default=2, ge=1, le=MOST_RANKS)
    """The stages that `hybrid` cuts the model into; it divides `ranks`. `pipeline` has as many as
    ranks."""

    pipeline_schedule: Literal["gpipe", "1f1b"] = "1f1b"
    """The order of `pipeline` and `hybrid`: all forward passes before all backward ones (`gpipe`),
    or one forward, one backward (`1f1b`), which keeps fewer activations."""

    ranks: int = Field(default=2, ge=1, le=MOST_RANKS)
    """P, the number of processes; rank r owns the r-th block of the shards. With `sync_sgd` by the
    tree and `local_sgd` it is at most `shards`, and blocks are as even as can be; `ddp`, `fsdp` and
    `fast` want it to divide them, and `hybrid` `ranks`/`stages`; `pipeline` takes any."""

    threads: int = Field(default=1, ge=1, le=MOST_THREADS)
    """The number of threads of each rank. The bits depend on it."""

    oversubscribe: bool = False
    """Leave to run more ranks x threads than the machine has cores: slow, good for a test."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute. `auto` takes GPUs where every rank has one of its own, else CPUs; `cuda`
    stops where there are too few."""

    backend: Literal["auto", "mpi4py", "gloo", "nccl"] = "auto"
    """What carries the ranks' tensors. `auto` is NCCL between GPUs, and between CPUs MPI where it
    has started the ranks, else Gloo. Where a strategy keeps the promise, the bits do not depend on
    it."""

    init_method: str = Field(
        default="auto", pattern=r"^(auto|mpi://|env://|file:///.+|tcp://[^/]+:[0-9]+)$"
    )
    """How ranks find each other: `mpi://`, `env://` (MASTER_ADDR and MASTER_PORT are set),
    `file:///path` (which all ranks see), `tcp://host:port` (of rank 0). `auto` asks MPI where it
    has started the ranks, else what torchrun has set."""

    epochs: int = Field(default=30, ge=1, le=MOST_EPOCHS)
    """The number of passes over the training set. A pass takes whole micro-batches alone: up to
    B/S - 1 samples of each shard, others each time, are left out of it."""

    batch: int = Field(default=128, ge=1, le=MOST_OF_ANYTHING)
    """B, the global batch in samples. `shards` divides it: each gives B/S samples to every step."""

    shuffle_window: int | None = Field(default=None, ge=1, le=MOST_OF_ANYTHING)
    """How many samples are shuffled among one another, for data that are larger than memory:
    blocks of neighbours are read in a random order, and so many samples of them mixed. Without it,
    all samples are."""

    shift: int = Field(default=0, ge=0, le=1024)
    """Augmentation: shift each image at random by up to so many pixels, both ways, over zeros (a
    random crop with padding)."""

    flip: bool = False
    """Augmentation: mirror each image left to right with probability one half."""

    crop: float | None = Field(default=None, gt=0, le=1)
    """Augmentation: a random part of each image, of so much of its area at least (0.08 is usual),
    scaled to the whole: torchvision's RandomResizedCrop."""

    augment: Literal["none", "trivial", "rand"] = "none"
    """Augmentation: torchvision's TrivialAugmentWide (`trivial`) or RandAugment (`rand`)."""

    jitter: float = Field(default=0.0, ge=0, le=1)
    """Augmentation: change brightness, contrast and saturation by up to this share."""

    erase: float = Field(default=0.0, ge=0, le=1)
    """Augmentation: the probability that a random rectangle is made black."""

    mixup: float = Field(default=0.0, ge=0, le=MOST_OF_ANYTHING)
    """Augmentation: mix images, and their labels, in pairs within a shard's part of a batch, by a
    share from a beta distribution with this parameter; 0: not."""

    cutmix: float = Field(default=0.0, ge=0, le=MOST_OF_ANYTHING)
    """Augmentation: the same, with a rectangle of one image put over another."""

    optimizer: Literal["sgd", "adam", "adamw"] = "adamw"
    """The optimizer."""

    lr: float = Field(default=0.01, gt=0, le=MOST_OF_ANYTHING)
    """The learning rate, at its peak where the schedule has one."""

    momentum: float = Field(default=0.9, ge=0, lt=1)
    """The momentum of `sgd`."""

    nesterov: bool = True
    """Nesterov's momentum in `sgd`."""

    weight_decay: float = Field(default=0.0, ge=0, le=MOST_OF_ANYTHING)
    """The weight decay."""

    decay_norm_bias: bool = False
    """Decay biases and the weights of normalisation layers as well."""

    schedule: Literal["constant", "step", "cosine", "onecycle"] = "onecycle"
    """How the learning rate goes over the steps."""

    warmup: float = Field(default=0.0, ge=0, le=MOST_OF_ANYTHING)
    """Epochs over which the learning rate rises from 0, before any schedule but `onecycle`, which
    has a rise of its own."""

    step_epochs: int = Field(default=10, ge=1, le=MOST_OF_ANYTHING)
    """The `step` schedule: the epochs between two drops."""

    step_gamma: float = Field(default=0.1, gt=0, le=1)
    """The `step` schedule: the factor of a drop."""

    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """The share of each label that is spread over all classes."""

    class_weights: str = "none"
    """What a sample's loss counts for, by its class: `none`: all alike; `balanced`: n/(K n_k) in
    class k, which has n_k of the n training samples of K classes; or a number for each class, in
    their order, as in `1,2.5,1`."""

    clip: float | None = Field(default=None, gt=0, le=MOST_OF_ANYTHING)
    """The largest norm of the gradient; a longer one is scaled down to it."""

    ema: float | None = Field(default=None, gt=0, lt=1)
    """The decay of an exponential moving average of the weights, such as 0.999: the result is the
    average then. For strategies with a whole model on each rank."""

    patience: int | None = Field(default=None, ge=1, le=MOST_EPOCHS)
    """Stop early when the loss on the validation part has not been lower for so many epochs."""

    keep: Literal["last", "best"] = "last"
    """Which epoch's weights are the result: the last one's, or those of the one with the lowest
    loss on the validation part."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """What the model computes in. Weights, gradients and their sums are float32 either way."""

    snapshots: int | None = Field(default=None, ge=1)
    """The number of last epochs whose weights are kept, and averaged by `average`. Where it is not
    set, the last 3, or all of fewer."""

    checkpoint_every: str = Field(
        default="1 min",
        pattern=PATTERN,
    )
    """How often the run is saved, to go on after an interruption: `30 s`, `10 min`, `1 h`,
    `500 steps`, `1 epoch`."""

    checkpoint_keep: int = Field(default=2, ge=1, le=MOST_OF_ANYTHING)
    """How many checkpoints are kept: if the last is damaged, the one before is used."""

    timeout: float = Field(default=600.0, gt=0, le=MONTH)
    """Seconds that ranks wait for one another in a communication before the job is ended."""

    replace: bool = False
    """Whether a new rank is started for each one that dies, where the others go on without it."""

    tensorboard: bool = False
    """Whether the history is written for TensorBoard as well, epoch by epoch."""

    @field_validator("class_weights")
    @classmethod
    def _weights_are_numbers(cls, value: str) -> str:
        if value not in ("none", "balanced"):
            numbers_of(value)
        return value

    @field_validator("checkpoint_every")
    @classmethod
    def _some_time_passes(cls, value: str) -> str:
        period(value)
        return value


# What says where and how a run is computed, and nothing about its result, where its strategy keeps
# the promise.
PLACE = {
    *("ranks", "oversubscribe", "device", "backend", "init_method", "stages", "pipeline_schedule"),
    *("checkpoint_every", "checkpoint_keep", "timeout", "replace", "tensorboard"),
}
# Of these, what may change without anything being trained again.
UPKEEP = {"checkpoint_every", "checkpoint_keep", "timeout", "replace", "tensorboard"}


class Run(Defaults):
    """One training run. Its results follow from these values, the data and the machine's kind."""

    snapshots: int = Field(default=None, ge=1, validate_default=True)
    """The number of last epochs whose weights are kept, and averaged by `average`. Where it is not
    set, the last 3, or all of fewer."""

    @field_validator("snapshots", mode="before")
    @classmethod
    def _last_three(cls, value: Any, info: ValidationInfo) -> Any:
        return min(3, info.data.get("epochs", 3)) if value is None else value

    @model_validator(mode="after")
    def _numbers_divide(self) -> "Run":
        catalogue.of(self).check(self)
        if self.batch % self.shards:
            raise ValueError(
                f"batch: {self.shards} shards cannot share a batch of {self.batch} evenly; "
                f"take {self.batch // self.shards * self.shards or self.shards}"
            )
        if self.shuffle_window is not None and self.shuffle_window < self.batch:
            raise ValueError(
                f"shuffle_window: {self.shuffle_window} samples are fewer than a batch has; take "
                f"{self.batch} or more"
            )
        if self.ema is not None and not catalogue.of(self).whole:
            ways = ", ".join(dict.fromkeys(one.name for one in catalogue.ALL if one.whole))
            raise ValueError(
                f"ema: the strategy {self.strategy!r} has no whole model to average; take one of "
                f"{ways}, or leave ema away"
            )
        if self.one_shot and self.chooses:
            key = self.chooses.partition(":")[0]
            raise ValueError(
                f"{key}: with sync_every 0 the replicas meet after training alone: until then "
                f"there is no model to validate; take sync_every 1 or more"
            )
        if self.mixup and self.cutmix:
            raise ValueError("mixup: and cutmix mix in two ways; take one")
        if self.scheme == "balanced" and self.class_weights != "none":
            raise ValueError(
                "class_weights: count rare classes more, and scheme: balanced shows them more "
                "often; take one"
            )
        if (self.mixup or self.cutmix) and self.class_weights != "none":
            key = "mixup" if self.mixup else "cutmix"
            raise ValueError(f"{key}: mixes classes, which class_weights tells apart; take one")
        if self.optimizer == "sgd" and self.nesterov and not self.momentum:
            raise ValueError("nesterov: needs a momentum above 0")
        if self.snapshots > self.epochs:
            raise ValueError(f"snapshots: {self.snapshots} is more than the {self.epochs} epochs")
        if self.schedule != "onecycle" and self.warmup > self.epochs:
            raise ValueError(f"warmup: {self.warmup} is more than the {self.epochs} epochs")
        return self

    @property
    def chooses(self) -> str:
        """What chooses by the validation part, as `key: value`, or nothing."""
        if self.patience is not None:
            return f"patience: {self.patience}"
        return "" if self.keep == "last" else f"keep: {self.keep}"

    @property
    def weights_file(self) -> Path | None:
        """The file of the weights that the run begins with: the user's, or what is fetched."""
        if self.weights is None:
            return None
        name = self.weights.removeprefix("torchvision:")
        fetched = Path("data", "weights", f"{self.model}-{name}.pth")
        return Path(self.weights) if name == self.weights else fetched

    @property
    def imagenet(self) -> bool:
        """Whether images are normalised by ImageNet's mean and deviation."""
        own = (self.weights or "").startswith("torchvision:")
        return self.normalize == "imagenet" or (self.normalize == "auto" and own)

    @property
    def one_shot(self) -> bool:
        """Whether replicas are trained apart to the end, and `average` makes one model of them."""
        return catalogue.of(self).one_shot

    @property
    def partition(self) -> str:
        """The name of the partition's folder: all that it depends on, beside the data."""
        alpha = f"-{str(self.alpha).removesuffix('.0')}" if self.scheme == "dirichlet" else ""
        return f"{self.scheme}{alpha}-{self.shards}-seed{self.seed}"


class Config(Strict):
    """A whole experiment: config/config.yaml, with what another file puts over it."""

    dataset: Dataset = Dataset()
    """What to train on."""

    defaults: Defaults = Defaults()
    """What every run has, where its row says nothing else."""

    runs: str = "config/runs.tsv"
    """The table of runs: tab-separated, a row each; the column `run` names it, any other column
    overrides the default of that name where the cell is not empty."""

    grid: dict[str, list[Any]] = Field(default_factory=dict)
    """Values of keys of a run, each with each: every row of the table is trained with all of them,
    as in `grid: {lr: [0.01, 0.003], seed: [0, 1, 2]}`."""

    check_seconds: float = Field(default=1.0, ge=0, le=DAY)
    """About how many seconds `check` measures the communication of each kind of launch. More of
    them give more iterations, and larger messages."""

    pathvars: dict[Literal["results", "logs", "benchmarks"], str] = Field(default_factory=dict)
    """Snakemake's path variables: `results`, `logs`, `benchmarks` may lie elsewhere."""

    @field_validator("pathvars")
    @classmethod
    def _folders_apart(cls, value: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        folders = {"results": "results", "logs": "logs", "benchmarks": "logs/benchmarks", **value}
        here, data = os.path.realpath("."), os.path.realpath("data")
        # Where `data` is a link to a large disk, there may be more on that than datasets.
        datasets = [f"{here}/data"]
        if dataset := info.data.get("dataset"):
            datasets.append(os.path.realpath(f"data/{dataset.id}"))
        seen: dict[str, str] = {}
        for name, folder in folders.items():
            if not folder or re.search(r"[{}<>\0\n]", folder):
                raise ValueError(f"{name}: {folder!r} cannot be the path of a folder here")
            path = os.path.realpath(folder)
            if os.path.commonpath([path, here]) == path:
                raise ValueError(f"{name}: {folder!r} holds the workflow itself; take another")
            if path == data or any(os.path.commonpath([path, d]) == d for d in datasets):
                raise ValueError(f"{name}: {folder!r} is among the datasets; take another")
            if path in seen:
                raise ValueError(f"{name}: {folder!r} is that of {seen[path]}; take another")
            seen[path] = name
        return value


class RunRow(Run):
    """A row of runs.tsv."""

    run: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """The run's name, and that of its folder of results."""


# A wrong value may be of any size, and a few aliases of YAML make one that no memory holds as text.
QUOTE = reprlib.Repr()
QUOTE.maxlevel, QUOTE.maxstring, QUOTE.maxother, QUOTE.maxlong = 2, 80, 80, 40


# What other tools call a key of ours.
OTHERS = {
    **{"learning_rate": "lr", "batch_size": "batch", "num_epochs": "epochs", "n_epochs": "epochs"},
    **{"num_shards": "shards", "wd": "weight_decay", "scheduler": "schedule", "arch": "model"},
    **{"world_size": "ranks", "nproc": "ranks", "num_ranks": "ranks", "num_threads": "threads"},
    **{"grad_clip": "clip", "early_stopping": "patience", "dtype": "precision"},
}


def parse(model: type[BaseModel], values: Any, where: str) -> Any:
    """Build `model` from `values`; what is wrong becomes one line that begins with `where`."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        found = (
            ""
            if first["type"] in ("extra_forbidden", "missing", "value_error")
            else f", not {QUOTE.repr(first['input'])}"
        )
        message = {"missing": "is missing"}.get(
            first["type"], first["msg"].removeprefix("Value error, ")
        )
        if first["type"] == "extra_forbidden":
            message = f"no such key; {_meant(model, first['loc'])}"
        if first["type"] == "list_type":
            message, found = f"expected a list, as in [{QUOTE.repr(first['input'])}]", ""
        if first["type"] == "literal_error" and isinstance(first["input"], str):
            near = difflib.get_close_matches(first["input"], first["ctx"]["expected"].split("'"), 1)
            found += f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(": ".join(filter(None, [where, key, message + found]))) from None


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return what somebody may have meant by a key that there is not, and which there are."""
    names = list(known)
    near = [OTHERS[word]] if OTHERS.get(word) in names else []
    near += difflib.get_close_matches(word, names, 1)
    if near:
        return f"did you mean {near[0]!r}? config/README.md tells of all"
    listed = f"known keys: {', '.join(names)}; " if len(names) < 20 else ""
    return f"{listed}config/README.md tells of all that there are"


def _meant(model: type[BaseModel], location: tuple[int | str, ...]) -> str:
    """Return what may have been meant by a key that there is not at this place."""
    word = str(location[-1])
    if model is Config:
        sections: dict[str, type[Strict]] = {"defaults": Defaults, "dataset": Dataset}
        for name, section in sections.items():
            if word in section.model_fields and [*location[:-1]] != [name]:
                return f"it belongs under {name}"
    return suggestion(word, _fields_at(model, location))


def _fields_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    for part in location[:-1]:
        model = model.model_fields[str(part)].annotation  # type: ignore[assignment]
    return list(model.model_fields)


def main() -> None:
    """Write the JSON schemas, for editors and other tools, from the models above."""
    folder = Path(__file__).parents[3] / "workflow" / "schemas"
    for name, model in (("config", Config), ("runs", RunRow)):
        schema = json.loads(json.dumps(model.model_json_schema()))
        (folder / f"{name}.schema.yaml").write_text(yaml.safe_dump(schema, sort_keys=False))


if __name__ == "__main__":
    main()
