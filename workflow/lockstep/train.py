"""train: the loop over epochs and steps.

Every rank runs this. What a step does is the strategy's affair; what is here is the same for all:
the order of the batches, the learning rate, and what is written down.
"""

import datetime
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.distributed as dist
from tqdm import tqdm

from lockstep import optim, parallel, provenance, runtime, state
from lockstep.comm import rendezvous
from lockstep.comm.meter import Meter
from lockstep.comm.world import World, discover
from lockstep.config import Run
from lockstep.data.arrays import open_part
from lockstep.data.batches import Batches
from lockstep.data.manifest import read_manifest
from lockstep.data.shards import read_members
from lockstep.files import atomic, sha256, write_json
from lockstep.models import build
from lockstep.objective import CrossEntropy, Normalize, check_bfloat16
from lockstep.parallel.local_sgd import LocalSGD

# Seconds between two lines about an epoch that goes on, where there is no terminal.
LINE_EVERY = 30.0

# The columns of history.csv that are results; the others are times.
RESULTS = ["epoch", "lr", "loss", "accuracy"]


def train(run: Run, data: Path, partition: Path, output: Path) -> dict[str, Any] | None:
    """Train a model and write it, with how it came about, to `output`.

    Args:
        run: the run's configuration.
        data: the folder of the prepared dataset.
        partition: the table of shards.
        output: the folder that gets model.safetensors, snapshots/, history.csv and, last,
            train.json.

    Returns:
        What train.json holds, on rank 0.

    Raises:
        UserError: something that the user can mend is wrong; nothing is written.
    """
    world = discover(run.ranks)
    device = runtime.choose_device(world, run.device)
    if not run.oversubscribe:
        runtime.check_cores(world, run.threads)
    runtime.pin(run.threads, device, parallel.keeps_bits(run))
    started = datetime.datetime.now(datetime.UTC)

    manifest = read_manifest(data)
    part = open_part(data / "train")
    members = read_members(partition, len(part), run.shards)
    batches = Batches(part, members, run.batch, run.seed, run.shift, run.flip)
    model = build(run.model, manifest.shape, manifest.classes, run.seed)
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    trained = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    parameters = sum(p.numel() for p in model.parameters())
    normalize = Normalize(manifest.mean, manifest.std, device)
    objective = CrossEntropy(run, normalize, device)
    bfloat16_distance = None
    if run.precision == "bfloat16":
        exact = CrossEntropy(run.model_copy(update={"precision": "float32"}), normalize, device)
        bfloat16_distance = check_bfloat16(model, objective, exact, batches.get(0, 0, 0))

    backend = rendezvous.start(world, device, run.backend, run.init_method)
    places: list[Any] = [None] * world.size
    dist.all_gather_object(places, runtime.describe(world, device))
    if world.rank == 0 and (kinds := runtime.unlike(places)):
        say(f"ranks compute in {kinds}: the bits depend on which rank is where")
    strategy = parallel.make(run, model, objective, world, manifest.shape)
    meter = Meter()
    if world.rank == 0:
        (output / "train.json").unlink(missing_ok=True)  # it must not speak of another model
        shutil.rmtree(output / "snapshots", ignore_errors=True)
        (output / "snapshots").mkdir(parents=True)

    history = []
    sent = 0
    for epoch in range(run.epochs):
        before = meter.sent
        history.append(_epoch(epoch, run, batches, strategy, world, device))
        sent += round(meter.sent - before)
        if world.rank == 0:
            say(_line(history[-1], run.epochs))
        if epoch >= run.epochs - run.snapshots and not run.one_shot:
            weights = strategy.model_state()
            if world.rank == 0:
                state.save(weights, output / "snapshots" / f"epoch-{epoch + 1:04}.safetensors")

    if run.one_shot and isinstance(strategy, LocalSGD):
        for shard, weights in strategy.states():
            state.save(weights, output / "snapshots" / f"replica-{shard:04}.safetensors")
    weights, optimizer_state = strategy.model_state(), strategy.optimizer_state()
    everyones_sent = [0] * world.size
    dist.all_gather_object(everyones_sent, sent)
    rendezvous.stop()  # every rank got here: only now does the result count
    if world.rank:
        return None
    state.save(weights, output / "model.safetensors")
    table = pd.DataFrame(history)
    with atomic(output / "history.csv") as draft:
        table.to_csv(draft, index=False)
    seconds = sum(row["seconds"] for row in history)
    record = {
        "configuration": run.model_dump(),
        "dataset": manifest.name,
        "data_sha256": manifest.sha256,
        "data": str(data),
        "partition_sha256": sha256(partition),
        "partition": str(partition),
        "model_sha256": sha256(output / "model.safetensors"),
        **_hashes(weights, trained, optimizer_state, table, output / "snapshots"),
        "parameters": parameters,
        "steps": run.epochs * batches.steps_per_epoch,
        "images_per_second": run.epochs * batches.steps_per_epoch * run.batch / seconds,
        "seconds": seconds,
        "bytes_sent": everyones_sent,
        "bfloat16_distance": bfloat16_distance,
        "started": started.isoformat(timespec="seconds"),
        "launcher": world.launcher,
        "backend": backend,
        "ranks": places,
        "arithmetic": runtime.arithmetic(),
        "versions": provenance.versions(),
        "code": provenance.code_digest("lockstep.train", run.model),
        "git": provenance.git_state(),
    }
    write_json(output / "train.json", record)
    return record


def _epoch(
    epoch: int,
    run: Run,
    batches: Batches,
    strategy: parallel.Strategy,
    world: World,
    device: torch.device,
) -> dict[str, float]:
    """Train for one epoch; return its row of history.csv."""
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    communicated = strategy.communication
    waited = 0.0
    started = said = time.perf_counter()
    steps = batches.steps_per_epoch
    for index in (bar := _bar(epoch, run, steps, world)):
        step = epoch * steps + index
        before = time.perf_counter()
        micro_batches = [batches.get(epoch, index, shard) for shard in strategy.shards]
        waited += time.perf_counter() - before
        lr = optim.learning_rate(run, step, steps)
        sums = sums + strategy.step(micro_batches, lr)
        if world.rank == 0 and bar.disable and time.perf_counter() - said > LINE_EVERY:
            said = time.perf_counter()
            rate = (index + 1) * run.batch / (said - started)
            say(f"epoch {epoch + 1}/{run.epochs}  step {index + 1}/{steps}  {rate:,.0f} images/s")
    loss, right = strategy.totals(sums).tolist()
    seconds = time.perf_counter() - started
    communicated = strategy.communication - communicated
    images = steps * run.batch
    return {
        "epoch": epoch + 1,
        "lr": lr,
        "loss": loss / images,
        "accuracy": right / images,
        "images_per_second": images / seconds,
        "seconds": seconds,
        "input_seconds": waited,
        "compute_seconds": max(0.0, seconds - waited - communicated),
        "communication_seconds": communicated,
    }


def _hashes(
    weights: dict[str, torch.Tensor],
    trained: set[str],
    optimizer_state: dict[str, dict[str, torch.Tensor]],
    history: pd.DataFrame,
    snapshots: Path,
) -> dict[str, str | None]:
    """Return the SHA-256 of each kind of result; None for buffers where the model has none."""
    parameters = {name: value for name, value in weights.items() if name in trained}
    buffers = {name: value for name, value in weights.items() if name not in trained}
    return {
        "parameters_sha256": state.digest(parameters),
        "buffers_sha256": state.digest(buffers) if buffers else None,
        "optimizer_sha256": state.digest(optimizer_state),
        "history_sha256": state.digest(history[RESULTS].to_csv(index=False)),
        "snapshots_sha256": state.digest({path.name: sha256(path) for path in snapshots.iterdir()}),
    }


def _bar(epoch: int, run: Run, steps: int, world: World) -> tqdm:
    shown = world.rank == 0 and sys.stderr.isatty()
    return tqdm(
        range(steps),
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


def say(text: str) -> None:
    """Print a line for a person, at once."""
    print(text, file=sys.stderr, flush=True)
