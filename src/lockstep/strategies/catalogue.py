"""What each strategy says of itself: the one place where strategies are asked for by name.

Nothing here loads torch. A strategy's module is imported when a run makes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol


class Options(Protocol):
    """What strategies read of a run's configuration."""

    @property
    def strategy(self) -> Any: ...
    @property
    def reduction(self) -> Any: ...
    @property
    def ranks(self) -> int: ...
    @property
    def shards(self) -> int: ...
    @property
    def clip(self) -> float | None: ...
    @property
    def ema(self) -> float | None: ...
    @property
    def sync_every(self) -> int: ...
    @property
    def one_shot(self) -> bool: ...
    @property
    def stages(self) -> int: ...
    @property
    def pipeline_schedule(self) -> Any: ...


def alone(run: Options) -> None:
    """Refuse more than one rank."""
    if run.ranks != 1:
        raise ValueError(f"ranks: the strategy {run.strategy!r} has 1 rank, not {run.ranks}")


def evenly(run: Options) -> None:
    """Refuse ranks that cannot have as many shards each."""
    if run.shards % run.ranks:
        raise ValueError(
            f"ranks: {run.ranks} ranks cannot share {run.shards} shards evenly; "
            f"take one of {divisors(run.shards)}"
        )


def a_shard_each(run: Options) -> None:
    """Refuse more ranks than shards. Some ranks may have one shard more than others."""
    if run.ranks > run.shards:
        raise ValueError(
            f"ranks: {run.ranks} ranks cannot have a shard each of {run.shards}; "
            f"take at most {run.shards}"
        )


def one_pipeline(run: Options) -> None:
    """Refuse more stages, which are the ranks, than the schedule has work for."""
    _in_pipelines(run, stages=run.ranks)


def pipelines(run: Options) -> None:
    """Refuse ranks that are no whole number of pipelines, or pipelines that cannot share shards."""
    _in_pipelines(run, stages=run.stages)


def _in_pipelines(run: Options, stages: int) -> None:
    if run.ranks % stages:
        raise ValueError(
            f"stages: {run.ranks} ranks cannot be pipelines of {stages} stages each; "
            f"take one of {divisors(run.ranks)}"
        )
    count = run.ranks // stages
    if run.shards % count:
        raise ValueError(
            f"ranks: {run.ranks} ranks are {count} pipelines of {stages} stages, which cannot "
            f"share {run.shards} shards evenly; {stages} times one of {divisors(run.shards)} can"
        )
    if run.pipeline_schedule == "1f1b" and run.shards // count < stages:
        raise ValueError(
            f"pipeline_schedule: 1f1b wants as many shards for a pipeline as it has stages, "
            f"{stages}, not {run.shards // count}; take more shards, or gpipe"
        )


def divisors(n: int) -> str:
    """Return the divisors of `n`, for a message."""
    return ", ".join(str(d) for d in range(1, n + 1) if n % d == 0)


@dataclass(frozen=True)
class Declaration:
    """A strategy, or one way of it that a setting chooses."""

    name: str
    about: str
    place: str
    """The module of this package, and what in it makes the strategy."""
    check: Callable[[Options], None]
    """Raises a ValueError, "key: what is wrong", for ranks that cannot share the shards."""
    way: str = ""
    """What tells it from the strategy's other ways, for a person."""
    chosen_by: Mapping[str, object] = field(default_factory=dict)
    """The settings that choose this way of the strategy."""
    settings: tuple[str, ...] = ()
    """The keys of the configuration that other strategies do not read."""
    keeps_bits: bool = True
    """Whether the bits are the same at any number of ranks."""
    one_shot: bool = False
    """Whether replicas are trained apart to the end, and `average` makes one model of them."""
    whole: bool = False
    """Whether each rank has the one model whole, of whose weights it can keep an average (ema)."""
    one_sum: bool = False
    """Whether a step is computing and then one sum over the ranks, whose time can be predicted."""
    on_ranks: Callable[[Options, int], dict[str, object]] = lambda run, ranks: {}
    """What a run must have set otherwise to give the same bits on so many ranks."""

    @property
    def label(self) -> str:
        """The strategy for a person, such as "sync_sgd (tree)"."""
        return f"{self.name} ({self.way})" if self.way else self.name


_SYNC_SGD = Declaration(
    "sync_sgd",
    "gradients averaged by our own all-reduce",
    "sync_sgd:TreeReduction",
    a_shard_each,
    way="tree",
    settings=("reduction",),
    whole=True,
    one_sum=True,
)
_LOCAL_SGD = Declaration(
    "local_sgd",
    "a replica for each shard, averaged now and then",
    "local_sgd:LocalSGD",
    a_shard_each,
    settings=("sync_every",),
)
# The first whose name and settings a run has is its own.
ALL = (
    Declaration("single", "one process", "sync_sgd:TreeReduction", alone, whole=True),
    Declaration(
        "data_parallel",
        "torch's DataParallel, one process with all its GPUs",
        "data_parallel:DataParallel",
        alone,
        keeps_bits=False,
        whole=True,
    ),
    Declaration(
        "ddp",
        "DistributedDataParallel",
        "ddp:DataParallelByTorch",
        a_shard_each,
        keeps_bits=False,
        whole=True,
    ),
    replace(
        _SYNC_SGD,
        place="sync_sgd:FastReduction",
        way="fast",
        chosen_by={"reduction": "fast"},
        keeps_bits=False,
    ),
    _SYNC_SGD,
    replace(_LOCAL_SGD, chosen_by={"sync_every": 0}, one_shot=True),
    _LOCAL_SGD,
    Declaration(
        "pipeline",
        "the model cut into stages over the ranks",
        "pipeline:pipeline",
        one_pipeline,
        settings=("pipeline_schedule",),
    ),
    Declaration(
        "hybrid",
        "groups of ranks, each a pipeline",
        "hybrid:hybrid",
        pipelines,
        settings=("stages", "pipeline_schedule"),
        # Where the model is cut does not show in the bits.
        on_ranks=lambda run, ranks: {"stages": 1} if ranks % run.stages else {},
    ),
    Declaration("fsdp", "parameters sharded over the ranks (FSDP2)", "fsdp:FullySharded", evenly),
)
ABOUT = {one.name: one.about for one in ALL}
DEFAULT = "sync_sgd"
# The strategy whose bits others are compared with.
REFERENCE = "single"


def of(run: Options) -> Declaration:
    """Return what the run's strategy says of itself."""
    return next(
        one
        for one in ALL
        if one.name == run.strategy
        and all(getattr(run, key) == value for key, value in one.chosen_by.items())
    )
