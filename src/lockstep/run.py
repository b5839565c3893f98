"""A training under way in a loop of one's own: what it is of, where it is, what is kept of it."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from lockstep import determinism, provenance, tensors
from lockstep.checkpoint import period
from lockstep.checkpoint.agreement import check_same
from lockstep.checkpoint.checkpointer import Checkpointer, new_segment, now, resume
from lockstep.checkpoint.plain import from_plain, to_plain
from lockstep.checkpoint.state import Progress, check_kept
from lockstep.checkpoint.store import Store
from lockstep.distributed.elastic import again, end_with_the_first, survive, surviving, together
from lockstep.errors import Interrupted, RanksLost, UserError, say
from lockstep.files import sha256, write_json
from lockstep.gradients import Gradients
from lockstep.members import Members, join
from lockstep.progress import Teller
from lockstep.reduce.layout import settle
from lockstep.sampler import Sampler, split
from lockstep.step import Step, means
from lockstep.strategies.own_loop import OwnLoop
from lockstep.testing import faults, trace

if TYPE_CHECKING:
    from lockstep.loop import OwnSession

T = TypeVar("T")


class Scheduler(Protocol):
    """What a learning rate's scheduler has, and whatever else is to be kept."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


class Run:
    """A model, its optimizers, and a folder that holds what becomes of them.

    The folder gets checkpoints/ on the way, and in the end model.safetensors and run.json. Called
    again with the same script, a run goes on from its last checkpoint, on any number of ranks.

    Args:
        model: a module, or several by name. All that is trained, or has buffers, is in it.
        optimizer: an optimizer, or several.
        folder: where results go.
        scheduler: learning rates' schedulers, one or several: kept in checkpoints.
        checkpoint_every: `30 s`, `10 min`, `1 h`, `500 steps`, `1 epoch`.
        checkpoint_keep: how many checkpoints stay.
        configuration: what else decides the bits, such as the script's flags, as JSON: with
            another one, it is another run.

    Attributes:
        state: what the loop itself keeps from step to step, as JSON (the best accuracy so far):
            it is in checkpoints, rank 0's.
        history: the means over each epoch that is over, by name.

    Raises:
        UserError: the model, or an optimizer, cannot be trained so; or ranks differ.
    """

    def __init__(
        self,
        session: "OwnSession",
        model: nn.Module | Mapping[str, nn.Module],
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        folder: str | Path,
        *,
        scheduler: Scheduler | Sequence[Scheduler] = (),
        checkpoint_every: str = "1 min",
        checkpoint_keep: int = 2,
        configuration: Mapping[str, Any] | None = None,
    ) -> None:
        self.session, self.folder = session, Path(folder)
        self.model = model if isinstance(model, nn.Module) else nn.ModuleDict(model)
        self.schedulers = [*scheduler] if isinstance(scheduler, Sequence) else [scheduler]
        try:
            self.every = period(checkpoint_every)
        except ValueError as error:
            raise UserError(f"checkpoint_every: {error}") from None
        if checkpoint_keep < 1:  # each would go as soon as it is written
            raise UserError(
                f"checkpoint_keep: expected 1 checkpoint or more, not {checkpoint_keep}"
            )
        self.keep = checkpoint_keep
        self.given = configuration is not None
        self.state: dict[str, Any] = {}
        settle(self.model)
        check_kept(self.model)
        session.check_built(self.model)
        optimizers = [*optimizer] if isinstance(optimizer, Sequence) else [optimizer]
        self.strategy = OwnLoop(self.model, optimizers, session.shards)
        self.strategy.check_schedulers(self.schedulers)
        initial = tensors.digest(self.model.state_dict() | dict(self.model.named_buffers()))
        inputs = _inputs()
        session.check_same(**inputs, **{"initial weights": initial})
        self.gradients = Gradients(session, self.model)
        self.about = {
            "configuration": {**(configuration or {})},
            "settings": {
                **{"shards": session.shards, "seed": session.seed, "threads": session.threads},
                **self._settings(),
            },
            **inputs,
            "device": session.device.type,
            "initial weights": initial,
        }
        self.progress = Progress()
        self.is_under_way = self._stopped = self._has_begun = False
        self._step: Step | None = None
        self.checkpointer: Checkpointer
        self._store: Store | None = None
        self._sha256 = ""
        self.trace = trace.of(self)
        if self.trace:
            self.folder = self.trace.results

    def steps(self, samples: int, batch: int, epochs: int) -> Iterator[Step]:
        """Yield the steps that are still to be done, and keep the run as they are done.

        Args:
            samples: how many samples there are: ids go from 0 to samples - 1.
            batch: B, the samples of a step over all ranks; the shards share them evenly.
            epochs: how often to go through the samples. An epoch takes whole batches alone.

        Raises:
            UserError: there are fewer samples than a batch; the run has had its steps; or something
                is done in the loop that would break the promise.
            Interrupted: the run was told to stop by SIGUSR1 or SIGTERM, and is saved.
        """
        if not 1 <= batch <= samples or epochs < 1:
            raise UserError(
                f"steps: expected at least a batch of samples and an epoch, not {samples} samples, "
                f"a batch of {batch} and {epochs} epochs"
            )
        if self._has_begun:  # its parameters have been let go of, and its result is written
            raise UserError(
                f"steps: the steps of the run in {self.folder} were taken before; expected one "
                f"loop over a run's steps; make a new run, with a folder of its own: "
                f"session.run(...)"
            )
        self._has_begun = True
        shards, seed = self.session.shards, self.session.seed
        self.sampler = Sampler(split(samples, shards, seed), batch, seed)
        self.about["settings"] |= {"samples": samples, "batch": batch, "epochs": epochs}
        self.teller = Teller(self.folder, epochs, self.sampler.batches, batch)
        hook = register_optimizer_step_pre_hook(self._check_optimizer)
        self.is_under_way = True
        try:
            self._compare()
            if self.session.world.is_first:
                self._open()
            self._begin()
            self._tell()
            last = epochs * self.sampler.batches
            if self._store and (self._stopped or self.progress.step == last):
                say("all steps are done already: nothing is trained")
            while self.progress.step < last and not self._stopped:
                faults.point("step", self.progress.step)
                self._step = Step(self, self.progress.step)
                yield self._step
                self._commit(self._step)
                if self.progress.step < last and not self._stopped:
                    self._keep()
            self._together(lambda: self.checkpointer.save(self.progress, wait=True))
            self._sha256 = self._together(self._write)
            self.is_under_way = False
            self._end("done")
            end_with_the_first(self.session.world)
        except Interrupted:
            self._end("stopped")
            raise
        finally:
            self.gradients.let_go()
            hook.remove()
            if self._store:
                self._store.close()

    def _open(self) -> Store:
        self._store = Store(self.folder / "checkpoints", self.about, self.keep)
        return self._store

    def _together(self, call: Callable[[], T]) -> T:
        """Return what a call returns that all ranks make, or all that are left."""
        world = self.session.world
        return surviving(world, lambda: together(world, call), self.members.mend)

    def _keep(self) -> None:
        """Save the run and change its ranks, if that is due."""
        if self._together(lambda: self.checkpointer.after_step(self.progress)):
            try:
                self.members.change()
            except RanksLost:
                self.mend()

    def mend(self) -> Sequence[int]:
        """Go on with the ranks that are left; all of them call it.

        Returns:
            The shards that this one is to do, beside those that it has done in the pass under way.
        """
        return again(self.session.world, self.members.mend)

    def stop(self) -> None:
        """End the run after this step, as if it were the last; all ranks call it alike."""
        self._stopped = True

    @property
    def history(self) -> list[dict[str, float]]:
        """The means over each epoch that is over, by name."""
        return self.progress.history

    @property
    def sha256(self) -> str:
        """The SHA-256 of model.safetensors, when all steps are done."""
        if not self._sha256:
            raise UserError(
                "run: not at its end: there is no model yet; do all of its steps, or call "
                "run.stop() where it is to end"
            )
        return self._sha256

    def check_reduced(self, what: str) -> None:
        """Refuse what needs the gradients of all ranks while there are none.

        Raises:
            UserError: there are none.
        """
        if self._step is None or not self._step.is_reduced:
            where = self._step.where if self._step else "before the first step"
            raise UserError(
                f"{where}: {what} before the gradients are reduced; let the loop over the step's "
                f"shards come to its end first"
            )

    def _check_optimizer(self, one: torch.optim.Optimizer, *_: Any) -> None:
        """Refuse a step, of whichever optimizer, that no other rank or no later launch would do."""
        if any(one is known for known in self.strategy.optimizers):
            self.check_reduced("optimizer.step()")
        elif self.strategy.has_part_of(one):
            where = self._step.where if self._step else "before the first step"
            raise UserError(
                f"{where}: {type(one).__name__}.step() of an optimizer that was not given to the "
                f"run, though it has a parameter of the model: its state would begin anew after a "
                f"kill; give it: session.run(model, [optimizer, ...], ...)"
            )

    def _compare(self) -> None:
        """Refuse ranks that are about to take other steps; those that join are compared, too."""
        amount, unit = self.every
        self.session.same |= {
            "configuration": self.about["configuration"],
            "settings": {**self.about["settings"], "checkpoint_every": f"{amount:g} {unit}"},
        }
        check_same(self.session.same)

    def _begin(self) -> None:
        """Go on from the last checkpoint, if there is one; or join ranks that train already."""
        began, session, batches = now(), self.session, self.sampler.batches
        store, world = self._store, self.session.world
        if store:
            for name in ("run.json", "model.safetensors"):
                (self.folder / name).unlink(missing_ok=True)
        _, self.progress = resume(store, self.model, lambda: self.strategy, batches)
        if joins := world.ahead > 0:
            deal = self.gradients.deal_again
            self.progress = join(session, self.model, self.strategy, batches, deal)
        if kept := self.progress.kept:
            self._take(kept)
        if not joins:
            new_segment(self.progress, session, began)
        self.checkpointer = Checkpointer(
            world,
            session.interrupt,
            self.strategy,
            store,
            self.model,
            self.every,
            batches,
            saved=self.progress.step,
            kept=self.kept,
        )
        self.meter = self.checkpointer.meter
        survive(world, session.backend)
        self.members = Members(
            session,
            self.progress,
            self.checkpointer,
            self.gradients.deal_again,
            self._open,
            session.shards,
            session.replace,
        )

    def _take(self, kept: dict[str, Any]) -> None:
        """Go on from what `kept` returned."""
        self.strategy.put(from_plain(kept["optimizers"]), from_plain(kept["numbers"]))
        self.strategy.put_modes(kept["modes"])
        states = from_plain(kept["schedulers"])
        for scheduler, state in zip(self.schedulers, states, strict=True):
            scheduler.load_state_dict(state)
        self.state, self._stopped = from_plain(kept["state"]), kept["stopped"]
        if self._store and kept["arguments"] != sys.argv[1:] and not self.given:
            then, given = (" ".join(a) or "none" for a in (kept["arguments"], sys.argv[1:]))
            say(
                f"going on with other arguments: they were {then}, and are {given}; give those "
                f"that decide the bits as session.run(configuration=...)"
            )

    def kept(self) -> dict[str, Any]:
        """Return what the run keeps beside tensors."""
        return {
            "optimizers": to_plain(self.strategy.settings(), "optimizer"),
            "numbers": to_plain(self.strategy.numbers(), "optimizer"),
            "modes": self.strategy.modes(),
            "schedulers": to_plain([one.state_dict() for one in self.schedulers], "scheduler"),
            "state": to_plain(self.state, "run.state"),
            "stopped": self._stopped,
            "arguments": sys.argv[1:],
        }

    def _settings(self) -> dict[str, Any]:
        """Return what optimizers and schedulers are set to in the beginning."""
        found: dict[str, Any] = {}
        for number, groups in enumerate(self.strategy.settings(), start=1):
            name = type(self.strategy.optimizers[number - 1]).__name__
            for place, group in enumerate(groups, start=1):
                where = f"{name} {number}, group {place}"
                found[where] = {k: to_plain(v, "optimizer") for k, v in group.items()}
        for number, one in enumerate(self.schedulers, start=1):
            state = {k: to_plain(v, "scheduler") for k, v in one.state_dict().items()}
            found[f"{type(one).__name__} {number}"] = state
        return found

    def _commit(self, step: Step) -> None:
        """Take a step as done."""
        if not step.is_reduced:
            raise UserError(
                f"{step.where}: the loop over its shards has not come to its end; expected "
                f"`for shard in step:` once or more in each step, without break"
            )
        self.strategy.check_schedulers(self.schedulers)  # one may have been made meanwhile
        self.strategy.metrics.add_all(step.sums, torch.stack([*step.sums.values()], dim=1))
        self.progress.step += 1
        if self.progress.step % self.sampler.batches == 0:
            row = {"epoch": self.progress.step // self.sampler.batches}
            self.progress.history.append(row | self._means(self.strategy.metrics.totals()))
            self.strategy.metrics.reset()
        self._tell()
        if self.trace:
            self.trace.after_step()

    def _means(self, totals: dict[str, float]) -> dict[str, float]:
        return means(totals, self.gradients.passes())

    def _tell(self) -> None:
        """Tell where the run is, for who looks on from outside."""
        if not (self.session.world.is_first and self.teller.is_due()):
            return
        now = self._means(self.strategy.metrics.here())
        self.teller.tell(self.progress.step, self.history, **now, **self.members.counts())

    def _end(self, state: str) -> None:
        if self.session.world.is_first:
            self.teller.end(state, self.progress.step, self.history, **self.members.counts())

    def _write(self) -> str:
        """Write the model, and how it came about; return its SHA-256."""
        message = [""]
        if self.session.rank == 0:
            weights = self.model.state_dict()
            tensors.save(weights, self.folder / "model.safetensors")
            message = [sha256(self.folder / "model.safetensors")]
            record = {
                **self.about,
                "model_sha256": message[0],
                "optimizer_sha256": tensors.digest(self.strategy.optimizer_state()),
                "history": self.history,
                "steps": self.progress.step,
                "segments": self.progress.segments,
                "checkpoint_pauses": self.checkpointer.pauses,
                "ranks": self.session.places,
                "arithmetic": determinism.arithmetic(),
                "versions": provenance.versions(),
                "git": provenance.git_state(),
            }
            write_json(self.folder / "run.json", record)
        dist.broadcast_object_list(message)
        return message[0]


def _inputs() -> dict[str, Any]:
    """Return what the bits follow from, apart from the configuration and the weights."""
    source = script()
    return {
        **determinism.software(),
        "code": provenance.code_of_script(source) if source else {},
    }


def script() -> Path | None:
    """Return the script that this process runs, if it runs one."""
    import __main__

    found = Path(getattr(__main__, "__file__", None) or "<stdin>").resolve()
    return found if found.is_file() else None
