"""A session of a training loop of one's own: how it begins, and what it gives."""

import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

from torch import nn

from lockstep.determinism import seeded
from lockstep.distributed import ending
from lockstep.distributed.world import TIMEOUT
from lockstep.errors import UserError, say
from lockstep.reduce.layout import settle
from lockstep.reduce.tree import block
from lockstep.run import Run, script
from lockstep.session import Session

Model = TypeVar("Model", bound=nn.Module)


class OwnSession(Session):
    """A session of a training loop of one's own: see `init`.

    Attributes:
        device: where this rank computes (a torch.device).
    """

    def __init__(self, shards: int, seed: int, replace: bool, **options: Any) -> None:
        self.shards, self.seed, self.threads = shards, seed, options["threads"]
        self.replace = replace
        self._built: list[nn.Module] = []
        self._runs: list[Run] = []
        super().__init__(same={"flags": {"shards": shards, "seed": seed, **options}}, **options)
        source = script()
        alone = self.world.size == 1
        name = f"{source.name if source else 'python'}" + ("" if alone else f", rank {self.rank}")
        ending.report_by_line(name, None if alone else str(self.rank))
        self._hooks = self._hooks[0], sys.excepthook
        if self.size > shards:
            self.__exit__(None, None, None)  # all ranks find it, and leave together
            sys.excepthook = self._hooks[1]  # which says this in a line
            raise UserError(
                f"shards: {self.size} ranks cannot share {shards} shards; take as many ranks as "
                f"shards at most"
            )

    @property
    def rank(self) -> int:
        """This rank's number, from 0."""
        return self.world.ahead + self.world.rank

    @property
    def size(self) -> int:
        """P, how many ranks there are."""
        return self.world.ahead + self.world.size

    def deal(self) -> range:
        """Return the shards that are this rank's: whoever has one computes the same for it."""
        return block(self.world.rank, self.world.size, self.shards)

    def build(self, make: Callable[..., Model], *words: Any, **options: Any) -> Model:
        """Return what `make` makes, with the same initial weights on every rank, on the device.

        Raises:
            UserError: two of its parameters share memory without being one.
        """
        place = (len(self._built),) if self._built else ()  # a second one has its own weights
        with seeded("weights", self.seed, *place):
            model = make(*words, **options)
        settle(model)
        self._built.append(model)
        return model.to(self.device)

    def check_built(self, model: nn.Module) -> None:
        """Say if a model has weights to train that no `build` has drawn."""
        built = {p for one in self._built for p in one.parameters()}
        others = [n for n, p in model.named_parameters() if p.requires_grad and p not in built]
        if others and self.rank == 0:
            say(
                f"model: {others[0]} is not of session.build, so its first weights are those that "
                f"the script has; without a seed, they are others at each launch"
            )

    def run(self, *words: Any, **options: Any) -> Run:
        """Return a training under way: see `Run`."""
        self._runs.append(Run(self, *words, **options))
        return self._runs[-1]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None and any(run.is_under_way for run in self._runs):
            error = UserError(
                "run: its steps were left before their end, which writes no model; call run.stop() "
                "on all ranks in the step that is to be the last, without break"
            )
            super().__exit__(UserError, error, None)
            raise error
        super().__exit__(kind, error, trace)


def init(
    shards: int,
    seed: int = 0,
    *,
    threads: int = 1,
    device: str = "auto",
    backend: str = "auto",
    init_method: str = "auto",
    timeout: float = TIMEOUT,
    replace: bool = False,
) -> OwnSession:
    """Begin a session: this process becomes one of the ranks that were launched.

    By mpirun, srun, torchrun, or alone, as plain Python. Use it in a `with`: what it sets in the
    process is set back at the end.

    Args:
        shards: S, the parts that the training set and each global batch are cut into; ranks share
            them. The bits depend on it, and not on the number of ranks.
        seed: what the weights, the order of the data and all random numbers are drawn from.
        threads: of each rank. The bits depend on it.
        device: `auto` (GPUs where every rank has one of its own, else CPUs), `cpu` or `cuda`.
        backend: what carries tensors: `auto`, `mpi4py`, `gloo`, `nccl`.
        init_method: how ranks meet: `auto`, `mpi://`, `env://`, `file:///path`, `tcp://host:port`.
        timeout: the seconds that ranks wait for one another before the job is ended.
        replace: whether a new rank is started for each one that dies, where the others go on.

    Raises:
        UserError: the launch cannot be used so; the line says why.
    """
    if shards < 1 or seed < 0:
        raise UserError(f"init: expected shards from 1 and a seed from 0, not {shards} and {seed}")
    return OwnSession(
        shards,
        seed,
        replace,
        threads=threads,
        device=device,
        backend=backend,
        init_method=init_method,
        timeout=timeout,
    )
