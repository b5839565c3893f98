"""train: set a run up, take it on from where it was, and write down what came of it.

Every rank runs this. What a step does is the strategy's affair; what is here is the same for all:
the order of the batches, the learning rate, and what is kept.
"""

import contextlib
import datetime
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from lockstep import determinism, provenance
from lockstep import strategies as parallel
from lockstep.checkpoint import tensors as state
from lockstep.checkpoint.agreement import check_same, gather
from lockstep.checkpoint.checkpointer import Checkpoint, Keeper, Progress, fill, spread
from lockstep.checkpoint.store import Store
from lockstep.distributed import devices, rendezvous
from lockstep.distributed.signals import Interrupt, name_of
from lockstep.distributed.world import World, discover
from lockstep.errors import UserError, in_one_line, say
from lockstep.files import sha256
from lockstep.measure.meter import Meter
from lockstep.pipeline import optim
from lockstep.pipeline.config import PLACE, Run
from lockstep.pipeline.data.arrays import Part, open_part
from lockstep.pipeline.data.batches import Batches
from lockstep.pipeline.data.manifest import Manifest, check_files, read_manifest
from lockstep.pipeline.data.shards import is_edited, read_members
from lockstep.pipeline.models import build
from lockstep.pipeline.results import clear_results, make_row, write_results
from lockstep.pipeline.tasks.classification import CrossEntropy, Normalize, check_bfloat16
from lockstep.pipeline.tasks.rehearsal import rehearse
from lockstep.reduce.layout import move
from lockstep.strategies.local_sgd import LocalSGD
from lockstep.testing import faults

# Seconds between two lines about an epoch that goes on, where there is no terminal.
LINE_EVERY = 30.0
# Bytes a second that a slow disk gives, or one over a network.
SLOWEST_DISK = 50e6
# Bytes of data whose reading takes so long that a user wonders.
SAID_FROM = 10e9


def train(run: Run, data: Path, partition: Path, output: Path) -> dict[str, Any] | None:
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
    world = discover(run.ranks, run.timeout)
    with Interrupt(name_of(world)) as interrupt, contextlib.ExitStack() as stack:
        return _train(run, data, partition, output, world, interrupt, stack)


def _train(
    run: Run,
    data: Path,
    partition: Path,
    output: Path,
    world: World,
    interrupt: Interrupt,
    stack: contextlib.ExitStack,
) -> dict[str, Any] | None:
    manifest = read_manifest(data)
    inputs = _inputs(run, manifest, partition)
    # Where a host has its data is its own affair, and so is what does not compute.
    versions = {"python": platform.python_version()}
    mine = {"flags": run.model_dump(), "versions": versions, **inputs}
    if world.comm is not None:  # at once: with other flags, ranks may not even meet
        check_same(mine, world.comm.allgather)
    device = devices.choose_device(world, run.device)
    if not run.oversubscribe:
        devices.check_cores(world, run.threads)
    determinism.pin(run.threads, device, parallel.keeps_bits(run))
    started = datetime.datetime.now(datetime.UTC)

    part = open_part(data / "train")
    problem = _problem_of_files(data, manifest, part, world)
    members = read_members(partition, part.labels, run.shards)
    edited = is_edited(partition)
    if edited and world.rank == 0:
        say(f"{partition}: is not what `partition` wrote; trained with all the same, and recorded")
    batches = Batches(part, members, run.batch, run.seed, run.shift, run.flip)
    model = build(run.model, manifest.shape, manifest.classes, run.seed)
    initial = state.digest(model.state_dict() | dict(model.named_buffers()))
    move(model, device)
    trained = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    parameters = sum(p.numel() for p in model.parameters())
    normalize = Normalize(manifest.mean, manifest.std, device)
    objective = CrossEntropy(run, normalize, device)
    rehearse(model, objective, batches.get(0, 0, 0), parallel.keeps_bits(run))
    bfloat16_distance = None
    if run.precision == "bfloat16":
        exact = CrossEntropy(run.model_copy(update={"precision": "float32"}), normalize, device)
        bfloat16_distance = check_bfloat16(model, objective, exact, batches.get(0, 0, 0))

    backend = rendezvous.start(world, device, run.backend, run.init_method)
    if world.comm is None or world.size == 1:  # else MPI ends a job that does not get to `stop`
        stack.callback(rendezvous.leave)
    check_same({**mine, "initial weights": initial}, gather, problem)
    places = gather(devices.describe(world, device))
    if world.rank == 0 and (kinds := devices.unlike(places)):
        say(f"ranks compute in {kinds}: the bits depend on which rank is where")

    about = _about(run, inputs, initial, device, backend)
    store = None
    if world.rank == 0:
        store = Store(output / "checkpoints", about, run.checkpoint_keep)
        stack.callback(store.close)
        clear_results(output)
    found = spread(_find(store) if store else None)
    if found:
        fill(model, found.model)
    strategy = parallel.make(run, model, objective, world, manifest.shape)
    progress, sums = Progress(), None
    if found:
        strategy.load(found.optimizer, found.strategy)
        progress = found.progress
        before, now = progress.segments[-1]["processors"], _processors(places)
        if world.rank == 0 and now != before:
            say(f"it ran on {', '.join(before)}, and now on {', '.join(now)}: bits may differ")
        if progress.step % batches.steps_per_epoch:
            sums = strategy.share_of(found.strategy["sums"]).to(device)
    progress.segments.append(
        {
            "first_step": progress.step,
            "last_step": progress.step,
            "started": started.isoformat(timespec="seconds"),
            "launcher": world.launcher,
            "backend": backend,
            "hosts": [place["host"] for place in places],
            "processors": _processors(places),
            "bytes_sent": [0] * world.size,
        }
    )
    keeper = Keeper(run, world, strategy, interrupt, store, model, trained, batches.steps_per_epoch)
    if found:
        keeper.saved = progress.step  # whole as it is: not to be written over
        del found  # or its memory stays taken
    _run_epochs(run, batches, strategy, keeper, progress, sums, world, device)

    if store:
        store.link_snapshots(output / "snapshots")
    if run.one_shot and isinstance(strategy, LocalSGD):
        for shard, weights in strategy.states():
            state.save(weights, output / "snapshots" / f"replica-{shard:04}.safetensors")
    weights, optimizer_state = strategy.model_state(), strategy.optimizer_state()
    rendezvous.stop()  # every rank got here: only now does the result count
    if world.rank:
        return None
    origin = {
        "configuration": run.model_dump(),
        "dataset": manifest.name,
        "data_sha256": manifest.sha256,
        # A model is fed (pixels / 255 - mean) / std, channel by channel.
        "classes": manifest.class_names,
        "data": str(data),
        "mean": manifest.mean,
        "std": manifest.std,
        "partition_sha256": about["partition"],
        "partition": str(partition),
        "partition_edited": edited,
        "initial_sha256": initial,
        "parameters": parameters,
        "bfloat16_distance": bfloat16_distance,
        "checkpoint_pauses": keeper.pauses,
        "launcher": world.launcher,
        "backend": backend,
        "ranks": places,
        "arithmetic": determinism.arithmetic(),
        "versions": provenance.versions(),
        "code": about["code"],
        "git": provenance.git_state(run.model),
    }
    return write_results(output, run, progress, weights, trained, optimizer_state, origin)


def _inputs(run: Run, manifest: Manifest, partition: Path) -> dict[str, Any]:
    """Return what a rank trains with, apart from its flags and the machine."""
    versions = provenance.versions()
    return {
        "data": {
            "shape": list(manifest.shape),
            "classes": manifest.classes,
            "mean": manifest.mean,
            "std": manifest.std,
            **manifest.sha256,
        },
        "partition": sha256(partition),
        "libraries": {
            **{name: versions.get(name) for name in provenance.LIBRARIES},
            **determinism.libraries(),
        },
        "caps": provenance.caps(),
        "code": provenance.code("lockstep.pipeline.stages.train", run.model),
    }


def _problem_of_files(data: Path, manifest: Manifest, part: Part, world: World) -> str:
    """Return what is wrong with the arrays that this host sees, if its first rank finds something.

    The others wait for it, under MPI as much longer than `timeout` as such a file may take.
    """
    size, problem = part.images.nbytes + part.labels.nbytes, ""
    if world.rank == 0 and size > SAID_FROM:
        say(f"reading {size / 1e9:,.0f} GB of data to compare them with their hashes")
    if world.local_rank == 0:
        try:
            check_files(data, manifest, "train")
        except (UserError, OSError) as error:
            problem = in_one_line(error)
    if world.comm is not None:
        world.comm.longer(size // SLOWEST_DISK).Barrier()
    return problem


def _about(
    run: Run, inputs: dict[str, Any], initial: str, device: torch.device, backend: str
) -> dict[str, Any]:
    """Return all that the run's bits follow from, and nothing that they do not depend on."""
    configuration = run.model_dump(exclude=PLACE)
    if not parallel.keeps_bits(run):
        configuration |= {"ranks": run.ranks, "backend": backend}
    return {
        "configuration": configuration,
        **inputs,
        "device": device.type,
        "initial weights": initial,
    }


def _processors(places: list[dict[str, Any]]) -> list[str]:
    return sorted({place["processor"] for place in places})


def _find(store: Store) -> Checkpoint | None:
    """Return the checkpoint to go on from, and say what there is."""
    for line in store.others():
        say(line)
    found = store.newest()
    if found:
        say(f"going on after step {found.progress.step}, from {store.folder}")
    return found


def _run_epochs(
    run: Run,
    batches: Batches,
    strategy: parallel.Strategy,
    keeper: Keeper,
    progress: Progress,
    sums: torch.Tensor | None,
    world: World,
    device: torch.device,
) -> None:
    """Train from where `progress` is to the end, and keep it up to date.

    Args:
        sums: [sum of losses, right answers] (float64) of the epoch that goes on, if one does.
    """
    steps = batches.steps_per_epoch
    meter = Meter()
    for epoch in range(progress.step // steps, run.epochs):
        done = progress.step % steps
        if not done:
            sums = torch.zeros(2, dtype=torch.float64, device=device)
            progress.seconds = {"seconds": 0.0, "input_seconds": 0.0, "communication_seconds": 0.0}
        assert sums is not None  # where an epoch goes on, its sums were saved
        last = said = time.perf_counter()
        for index in (bar := _bar(epoch, run, done, steps, world)):
            step = progress.step
            faults.point("step", step)
            before, sent, communicated = time.perf_counter(), meter.sent, strategy.communication
            micro_batches = [batches.get(epoch, index, shard) for shard in strategy.shards]
            waited = time.perf_counter() - before
            lr = optim.learning_rate(run, step, steps)
            sums = sums + strategy.step(micro_batches, lr)
            progress.step += 1
            if index + 1 == steps:
                loss, right = strategy.totals(sums).tolist()
            now = time.perf_counter()
            spent = now - last, waited, strategy.communication - communicated
            for name, seconds in zip(progress.seconds, spent, strict=True):
                progress.seconds[name] += seconds
            last = now
            keeper.sent += meter.sent - sent
            if world.rank == 0 and bar.disable and now - said > LINE_EVERY:
                said = now
                rate = (index + 1) * run.batch / progress.seconds["seconds"]
                say(
                    f"epoch {epoch + 1}/{run.epochs}  step {index + 1}/{steps}  "
                    f"{rate:,.0f} images/s"
                )
            if index + 1 < steps:
                keeper.after_step(progress, sums)
        images = steps * run.batch
        row = make_row(epoch, lr, loss / images, right / images, images, progress.seconds)
        progress.history.append(row)
        if world.rank == 0:
            say(_line(row, run.epochs))
        if epoch >= run.epochs - run.snapshots and not run.one_shot:
            keeper.snapshot(f"epoch-{epoch + 1:04}.safetensors")
        if epoch + 1 < run.epochs:
            keeper.after_step(progress, torch.zeros_like(sums))
    keeper.save(progress, torch.zeros(2, dtype=torch.float64, device=device), wait=True)


def _bar(epoch: int, run: Run, done: int, steps: int, world: World) -> tqdm:
    shown = world.rank == 0 and sys.stderr.isatty()
    return tqdm(
        range(done, steps),
        initial=done,
        total=steps,
        desc=f"epoch {epoch + 1}/{run.epochs}",
        unit_scale=run.batch,
        unit=" images",
        leave=False,
        disable=not shown,
    )


def _line(row: dict[str, float], epochs: int) -> str:
    return (
        f"epoch {row['epoch']}/{epochs}  loss {row['loss']:.4f}  accuracy {row['accuracy']:.4f}  "
        f"{row['images_per_second']:,.0f} images/s"
    )
