"""A trace of a training loop for `lockstep verify`: what was computed from what, as digests.

    LOCKSTEP_TRACE=folder:steps    trace so many steps into the folder, then end the script

Each rank writes `rank-R.jsonl`: a line for the beginning, one for each shard, each reduction and
each step. A line has digests in the order in which things come about, so the first that differs
between two traces is the cause of all others. Results of the run go to the folder as well.
"""

import json
import os
import random
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from lockstep import tensors
from lockstep.torch_private import tree_leaves

if TYPE_CHECKING:
    from lockstep.run import Run
    from lockstep.step import Shard, Step

WANTED = os.environ.get("LOCKSTEP_TRACE", "")

# What a digest is of: its kind, its name, and the digest.
Entry = tuple[str, str, str]


class Trace:
    """The trace of a run on this rank; further runs of the same script go on in the same file.

    Args:
        run: whose it is.
        number: which of the script's runs it is, from 1.
    """

    def __init__(self, run: "Run", number: int) -> None:
        where, _, steps = WANTED.rpartition(":")
        self.run, self.number, self.steps = run, number, int(steps)
        self.folder = Path(where)
        self.results = self.folder / f"run-{number}"
        self.results.mkdir(parents=True, exist_ok=True)
        self.lines = (self.folder / f"rank-{run.session.rank}.jsonl").open("a")
        self.calls: list[Entry] = []
        for name, module in run.model.named_modules():
            self._watch(name or "the model", module)
        self._write("beginning", 0, self._weights())

    def begin_shard(self) -> None:
        """Begin a shard: what was noted for one that does not count is dropped."""
        self.calls, self._depth = [], 0
        self._others = _other_generators()

    def after_shard(self, step: "Step", shard: "Shard") -> None:
        """Note what a shard had and what came of it, before its gradient is added to others."""
        drew = [name for name, now in _other_generators().items() if now != self._others[name]]
        entries: list[Entry] = [("samples", "its ids", _digest(shard.ids)), *self.calls]
        entries += [("loss", name, repr(value)) for name, value in shard.sums.items()]
        entries += [("random", "torch's random numbers", _digest(_state(step)))]
        entries += self._gradients()
        where = {"pass": step.passes, "shard": shard.index, "drew": drew}
        self._write("shard", step.number + 1, entries, **where)

    def after_reduce(self, step: "Step") -> None:
        """Note what came of all shards, before the optimizer has it."""
        metrics = [("metric", name, repr(value)) for name, value in step.metrics.items()]
        where = {"pass": step.passes}
        self._write("reduction", step.number + 1, metrics + self._gradients(), **where)

    def after_step(self) -> None:
        """Note the state that a step has left; end the script if that was the last to be traced."""
        run = self.run
        entries = self._gradients()
        kept = run.kept()  # what else is in it, rank 0 may have alone
        for kind in ("optimizers", "numbers", "schedulers"):
            entries.append(("setting", kind, _digest(json.dumps(kept[kind]))))
        state = run.strategy.optimizer_state()
        for name, its in state.items():
            entries += [("optimizer", f"{key} of {name}", _digest(v)) for key, v in its.items()]
        self._write("step", run.progress.step, entries + self._weights())
        if run.progress.step == self.steps:
            if run.session.rank == 0:
                tensors.save(run.model.state_dict(), self.results / "model.safetensors")
            run.session.close()
            raise SystemExit

    def _watch(self, name: str, module: nn.Module) -> None:
        """Note what a module is given, if no other module calls it, and what it returns."""

        def before(_: nn.Module, args: Any, words: Any) -> None:
            if not torch.compiler.is_compiling():
                if not self._depth:
                    self.calls.append(("input", name, _digest([args, words])))
                self._depth += 1

        def after(_: nn.Module, args: Any, output: Any) -> None:
            if not torch.compiler.is_compiling():
                self._depth -= 1
                self.calls.append(("output", name, _digest(output)))

        self._depth = 0
        module.register_forward_pre_hook(before, with_kwargs=True)
        module.register_forward_hook(after)

    def _weights(self) -> list[Entry]:
        model = self.run.model
        buffers = [("buffer", name, _digest(b)) for name, b in model.named_buffers()]
        return [("weight", name, _digest(p)) for name, p in model.named_parameters()] + buffers

    def _gradients(self) -> list[Entry]:
        gradients = self.run.gradients
        return [
            ("gradient", name, _digest(p.grad))
            for name, p in zip(gradients.names, gradients.parameters, strict=True)
        ]

    def _write(self, kind: str, step: int, entries: Iterable[Entry], **where: Any) -> None:
        line = {"kind": kind, "run": self.number, "step": step, **where, "entries": [*entries]}
        print(json.dumps(line), file=self.lines, flush=True)


_count = 0


def of(run: "Run") -> Trace | None:
    """Return the trace of a run, if one is asked for."""
    global _count
    _count += 1
    return Trace(run, _count) if WANTED else None


def _digest(value: Any) -> str:
    """Return a digest of the tensors, arrays and numbers in a value; of other objects, of none."""
    kept: list[Any] = []
    for leaf in tree_leaves(value):
        if isinstance(leaf, torch.Tensor) and leaf.layout is torch.strided:
            kept.append(leaf.detach())
        elif isinstance(leaf, np.ndarray) and leaf.dtype != object:
            kept.append(f"{leaf.dtype}{leaf.shape}{leaf.tobytes().hex()}")
        elif leaf is None or isinstance(leaf, bool | int | float | str):
            kept.append(leaf)
    return tensors.digest(kept)[:16]


def _state(step: "Step") -> list[torch.Tensor]:
    device = step.session.device
    return [torch.get_rng_state()] + (
        [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    )


def _other_generators() -> dict[str, str]:
    """Return where the generators are that lockstep does not seed for each shard, by name."""
    return {
        "NumPy": _digest(list(np.random.get_state(legacy=True))),
        "Python": _digest(list(random.getstate())),
    }
