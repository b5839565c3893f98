"""train: set a run up, take it on from where it was, and write down what came of it.

Every rank runs this. What a step does is the strategy's affair; what is here is the same for all:
the order of the batches, the learning rate, and what is kept.
"""

import contextlib
import os
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lockstep import determinism, provenance, tensors
from lockstep import strategies as parallel
from lockstep.checkpoint import period
from lockstep.checkpoint.agreement import gather
from lockstep.checkpoint.checkpointer import Checkpointer, new_segment, now, resume
from lockstep.checkpoint.state import Progress, moved
from lockstep.checkpoint.store import Store
from lockstep.distributed import elastic
from lockstep.errors import Interrupted, UserError, in_one_line, say
from lockstep.members import Members, join
from lockstep.pipeline import board, identity
from lockstep.pipeline.config import Run
from lockstep.pipeline.data.arrays import Part, open_part
from lockstep.pipeline.data.batches import Batches
from lockstep.pipeline.data.manifest import Manifest, check_files, read_manifest
from lockstep.pipeline.data.shards import is_edited, read_members
from lockstep.pipeline.kinds import Kind
from lockstep.pipeline.models import build, pretrained
from lockstep.pipeline.optim import learning_rate, make_optimizer
from lockstep.pipeline.record import VERSION, Arithmetic, Origin, Place, Training
from lockstep.pipeline.results import VALIDATION, clear_results, make_row, write_results
from lockstep.pipeline.tasks.make import make as make_task
from lockstep.pipeline.tasks.rehearsal import check_bfloat16, rehearse
from lockstep.pipeline.tasks.supervised import Supervised
from lockstep.pipeline.tasks.validation import (
    LOSS,
    Validation,
    best_name,
    best_of,
    is_over,
    snapshot_name,
    validation_of,
)
from lockstep.progress import Teller, words
from lockstep.reduce.layout import move
from lockstep.session import Session
from lockstep.strategies.local_sgd import LocalSGD
from lockstep.strategies.replicated import Replicated
from lockstep.testing import faults

# Under this name a run that is at its end keeps who took it there: a launch that only writes the
# results again, on other ranks maybe, is not what they came from.
_BY = "trained by"
# Seconds between two lines of the log about an epoch that goes on.
LINE_EVERY = 30.0
# Bytes a second that a slow disk gives, or one over a network.
SLOWEST_DISK = 50e6
# Bytes of data whose reading takes so long that a user wonders.
SAID_FROM = 10e9


def train(run: Run, data: Path, partition: Path, output: Path) -> Training | None:
    """Train a model and write it, with how it came about, to `output`.

    The run is saved to `output`/checkpoints as it goes; called again, it goes on from there.

    Args:
        run: the run's configuration.
        data: the folder of the prepared dataset.
        partition: the table of shards.
        output: the folder that gets model.safetensors, snapshots/, history.csv and, last,
            train.json.

    Returns:
        What train.json holds, on rank 0.

    Raises:
        UserError: something that the user can mend is wrong; there is no train.json.
        Interrupted: the run was told to stop by SIGUSR1 or SIGTERM, and is saved.
    """
    manifest = read_manifest(data).seen_by(run)
    inputs = identity.inputs(run, manifest, partition)
    with session_of(run, inputs) as session:
        return train_in(session, run, manifest, inputs, data, partition, output)


def session_of(run: Run, same: dict[str, Any]) -> Session:
    """Begin the session of a run.

    Args:
        same: what all ranks must have alike, apart from the run.
    """
    return Session(
        ranks=run.ranks,
        threads=run.threads,
        device=run.device,
        backend=run.backend,
        init_method=run.init_method,
        timeout=run.timeout,
        oversubscribe=run.oversubscribe,
        reproducible=parallel.keeps_bits(run),
        same={"flags": run.model_dump(), **same},
    )


def train_in(
    session: Session,
    run: Run,
    manifest: Manifest,
    inputs: dict[str, Any],
    data: Path,
    partition: Path,
    output: Path,
) -> Training | None:
    """Do what `train` does, as one of the ranks of a session."""
    started = now()
    world, device = session.world, session.device

    # What is learned, and from what.
    board.check(run)
    kind = manifest.kind
    kind.check(run)
    part = open_part(data / "train", kind)
    if world.is_first and not run.shuffle_window and part.nbytes > _memory():
        say(
            f"{data}: the training set's {part.nbytes / 1e9:,.0f} GB are more than this host's "
            f"memory, and are read in any order, sample by sample; shuffle_window: "
            f"{200 * run.batch}, say, would read them in larger blocks"
        )
    problem = _problem_of_files(data, manifest, part, session)
    labels = part.targets if kind.classes else len(part)
    shards = read_members(partition, labels, run.shards, repeats=run.scheme == "balanced")
    edited = is_edited(partition)
    if edited and world.is_first:
        say(f"{partition}: is not what `partition` wrote; trained with all the same, and recorded")
    batches = Batches(part, shards, run)
    file = run.weights_file
    weights = None if file is None else pretrained.read(file)
    like = {name: tuple(value.shape) for name, value in (weights or {}).items()}
    model = build(run.model, manifest.shape, manifest.outputs, run.seed, kind, like)
    head = pretrained.prepare(
        model, run, manifest.outputs, weights, manifest.class_names, world.is_first
    )
    initial = tensors.digest(model.state_dict() | dict(model.named_buffers()))
    parameters = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    move(model, device)
    task = make_task(run, manifest, device)
    rehearse(model, task, batches.get(0, 0, 0), parallel.keeps_bits(run))
    bfloat16_distance = None
    if run.precision == "bfloat16":
        plain = run.model_copy(update={"precision": "float32"})
        exact = make_task(plain, manifest, device)
        bfloat16_distance = check_bfloat16(model, task, exact, batches.get(0, 0, 0))
    session.check_same(problem, **{"initial weights": initial})
    validation = validation_of(run, data, manifest, model, task, world)

    # Where the run is: at its beginning, or where it was cut off.
    about = identity.about(run, inputs, initial, device, session.backend)
    with contextlib.ExitStack() as opened:

        def open_store() -> Store:
            store = Store(output / "checkpoints", about, run.checkpoint_keep)
            opened.callback(store.close)
            return store

        if store := open_store() if world.is_first else None:
            clear_results(output)
        make = partial(
            parallel.make, run, model, task, partial(make_optimizer, run, head=head), world
        )
        strategy, progress = resume(store, model, make, batches.steps_per_epoch)
        if world.ahead:
            deal = strategy.deal_again  # type: ignore[attr-defined]
            progress = join(session, model, strategy, batches.steps_per_epoch, deal)
        else:
            new_segment(progress, session, started)
        checkpointer = Checkpointer(
            world,
            session.interrupt,
            strategy,
            store,
            model,
            period(run.checkpoint_every),
            batches.steps_per_epoch,
            saved=progress.step,
            kept=lambda: progress.kept,
        )
        if deal := getattr(strategy, "deal_again", None):
            elastic.survive(world, session.backend)
        members = Members(
            session, progress, checkpointer, deal, open_store, run.shards, run.replace
        )
        teller = Teller(output, run.epochs, batches.steps_per_epoch, run.batch, kind.unit)
        at = UnderWay(
            run,
            batches,
            task,
            kind,
            strategy,
            checkpointer,
            members,
            progress,
            session,
            validation,
            teller,
            output,
        )
        try:
            elastic.surviving(world, partial(_run_epochs, at), members.mend)
        except Interrupted:
            if world.is_first:
                teller.end("stopped", progress.step, progress.history, **at.members.counts())
            raise
        store = checkpointer.store

        # What came of it.
        if store:
            store.link_snapshots(output / "snapshots", "epoch-*")
        if run.one_shot and isinstance(strategy, LocalSGD):
            for shard, weights in strategy.states():
                tensors.save(weights, output / "snapshots" / f"replica-{shard:04}.safetensors")
        weights, optimizer_state = _result(strategy), strategy.optimizer_state()
        if store and run.keep == "best":
            weights = store.snapshot(best_name(progress.history))
        session.close()  # every rank got here: only now does the result count
        if world.rank:
            return None
        by = progress.kept[_BY]
        origin = Origin(
            version=VERSION,
            configuration=run.model_copy(update={"ranks": by["ranks"]}),
            dataset=manifest.name,
            task=manifest.task,
            data_sha256=manifest.sha256,
            classes=manifest.class_names,
            shape=list(manifest.shape),
            outputs=manifest.outputs,
            image=manifest.image,
            data=str(data),
            mean=manifest.mean,
            std=manifest.std,
            partition_sha256=about["partition"],
            partition=str(partition),
            partition_edited=edited,
            initial_sha256=initial,
            parameters=parameters,
            trained_parameters=trained,
            bfloat16_distance=bfloat16_distance,
            launcher=by["launcher"],
            backend=by["backend"],
            ranks=[Place(**place) for place in by["places"]],
            arithmetic=Arithmetic(**determinism.arithmetic()),
            versions=provenance.versions(),
            code=about["code"],
            git=provenance.git_state(run.model),
        )
        written = write_results(
            output,
            progress,
            weights,
            checkpointer.trained,
            optimizer_state,
            origin,
            checkpointer.pauses,
        )
        teller.end("done", progress.step, progress.history, **at.members.counts())
        return written


@dataclass(frozen=True)
class UnderWay:
    """A training under way: what it is of, and where it is."""

    run: Run
    batches: Batches
    task: Supervised
    kind: Kind
    strategy: parallel.Strategy
    checkpointer: Checkpointer
    members: Members
    progress: Progress
    session: Session
    validation: Validation | None
    teller: Teller
    output: Path


def _run_epochs(at: UnderWay) -> None:
    """Train from where `progress` is to the end, and keep it up to date.

    Raises:
        RanksLost: on all that are left: some have died. What is done is in `progress`.
    """
    run, batches, strategy, progress = at.run, at.batches, at.strategy, at.progress
    kind, checkpointer = at.kind, at.checkpointer
    world, steps, history = at.session.world, batches.steps_per_epoch, progress.history
    first = world.rank == 0
    if first:
        at.teller.tell(progress.step, history, **at.members.counts())
    shown = board.begin(at.output / board.FOLDER, progress) if first and run.tensorboard else None
    while len(history) < run.epochs and not is_over(history, run.patience):
        epoch = len(history)
        done = progress.step - epoch * steps
        if not done:
            progress.seconds = {"seconds": 0.0, "input_seconds": 0.0, "communication_seconds": 0.0}
        spent, last = progress.seconds, time.perf_counter()
        said = last
        for index in range(done, steps):
            step = progress.step
            faults.point("step", step)
            before, communicated = time.perf_counter(), strategy.communication
            micro_batches = [batches.get(epoch, index, shard) for shard in strategy.shards]
            waited = time.perf_counter() - before
            with checkpointer.meter:
                strategy.step(micro_batches, learning_rate(run, step, steps))
            progress.step += 1
            now = time.perf_counter()
            spent["seconds"] += now - last
            spent["input_seconds"] += waited
            spent["communication_seconds"] += strategy.communication - communicated
            last = now
            if first and at.teller.is_due():
                told = at.teller.tell(progress.step, history, **_so_far(at))
                if now - said > LINE_EVERY:
                    said = now
                    at_step = f"step {index + 1}/{steps}"
                    say(words(told, run.epochs, kind.unit, at_step) + at.members.words())
            if index + 1 < steps:
                _keep(at)

        history.append(row := elastic.together(world, partial(_end_epoch, at)))
        strategy.metrics.reset()
        if shown:
            board.add(shown, progress)
        if first:
            say(words(row, run.epochs, kind.unit) + at.members.words())
        if run.chooses:
            kept = {snapshot_name(epoch + 1 - back) for back in range(run.snapshots)}
            checkpointer.keep_snapshots(kept | {best_name(history)})
        if epoch + 1 < run.epochs and not is_over(history, run.patience):
            _keep(at)
    if _BY not in progress.kept:  # else an earlier launch has trained it to its end
        progress.kept[_BY] = {
            "ranks": run.ranks,
            "launcher": world.launcher,
            "backend": at.session.backend,
            "places": at.session.places,
        }
    elif first:
        say("all steps are done already: the results are written again, and those who did them")
    if first and is_over(history, run.patience) and (best := best_of(history)):
        say(
            f"over after epoch {len(history)}: in {run.patience} epochs {LOSS} was not below that "
            f"of epoch {best['epoch']}, {best[LOSS]:.4f}"
        )
    elastic.together(world, partial(checkpointer.save, progress, wait=True))
    if shown:
        shown.close()


def _keep(at: UnderWay) -> None:
    """Save the run and change its ranks, if that is due."""
    if elastic.together(at.session.world, partial(at.checkpointer.after_step, at.progress)):
        at.members.change()


def _end_epoch(at: UnderWay) -> dict[str, float]:
    """Measure an epoch whose steps are done, and keep its weights; return its row of history."""
    run, strategy, progress, world = at.run, at.strategy, at.progress, at.session.world
    steps, history, spent = at.batches.steps_per_epoch, progress.history, progress.seconds
    epoch, checkpointer = len(history), at.checkpointer
    means, weights = at.task.means(strategy.metrics.totals()), {}
    # Who has come to a sum first has waited there; the last has not.
    waits = gather(spent["communication_seconds"])
    spent["idle_seconds"] = sum(waits) / len(waits) - min(waits)
    if at.validation:
        started = time.perf_counter()
        weights = moved(_result(strategy), world)
        means |= at.validation.measure(weights, epoch + 1)
        spent[VALIDATION] = time.perf_counter() - started
    lr = learning_rate(run, progress.step - 1, steps)
    row = make_row(epoch, lr, means, steps * run.batch, spent, at.kind.rate)
    if run.keep == "best" and best_of([*history, row]) is row:
        checkpointer.put_snapshot(best_name([*history, row]), weights)
    # Which epochs will be the last ones, nobody knows who may stop early.
    if (run.patience or epoch >= run.epochs - run.snapshots) and not run.one_shot:
        checkpointer.snapshot(snapshot_name(epoch + 1))
    if world.survives:  # the rank that has the weights to write must not be the only one
        checkpointer.finish()
    return row


def _result(strategy: parallel.Strategy) -> dict[str, torch.Tensor]:
    """Return the state_dict of the model that is the result, on rank 0; all ranks call it."""
    if isinstance(strategy, Replicated):
        return strategy.result_state()
    return strategy.model_state()


def _problem_of_files(data: Path, manifest: Manifest, part: Part, session: Session) -> str:
    """Return what is wrong with the arrays that this host sees, if its first rank finds something.

    The others wait for it, under MPI as much longer than `timeout` as such a file may take.
    """
    size, problem, world = part.nbytes, "", session.world
    if world.is_first and size > SAID_FROM:
        say(f"reading {size / 1e9:,.0f} GB of data to compare them with their hashes")
    if world.local_rank == 0:
        try:
            for name in ("train", "validation"):
                check_files(data, manifest, name)
        except (UserError, OSError) as error:
            problem = in_one_line(error)
    if world.comm is not None:
        world.comm.longer(size // SLOWEST_DISK).Barrier()
    return problem


def _memory() -> int:
    """Return how much memory this host has, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _so_far(at: UnderWay) -> dict[str, float]:
    """Return what there is to tell of the epoch that goes on: of the shards whose sums are here."""
    steps = (at.progress.step - 1) % at.batches.steps_per_epoch + 1
    sums = at.strategy.metrics.here()
    means = at.task.means(sums) if sums.get("items") else {}
    return {
        **means,
        "rate": steps * at.run.batch / at.progress.seconds["seconds"],
        **at.members.counts(),
    }
