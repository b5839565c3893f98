"""What training leaves: the files of a result, train.json last, which says how it came about."""

import itertools
import shutil
from pathlib import Path
from statistics import median

import pandas as pd
import torch

from lockstep import tensors as state
from lockstep.checkpoint.state import Progress
from lockstep.files import atomic, sha256, sweep
from lockstep.optimizer import State
from lockstep.pipeline import board
from lockstep.pipeline.history import VALIDATION, without_times
from lockstep.pipeline.kinds import TASKS
from lockstep.pipeline.model_file import metadata
from lockstep.pipeline.record import Best, Origin, Segment, Training, write_training
from lockstep.pipeline.tasks.validation import best_of


def clear_results(output: Path) -> None:
    """Remove what an earlier training has left in `output`, apart from its checkpoints."""
    for name in ("train.json", "model.safetensors", "history.csv"):
        (output / name).unlink(missing_ok=True)  # train.json first: it must not speak of others
        sweep(output / name)
    for name in ("snapshots", board.FOLDER):
        shutil.rmtree(output / name, ignore_errors=True)
    (output / "snapshots").mkdir()


def write_results(
    output: Path,
    progress: Progress,
    weights: dict[str, torch.Tensor],
    trained: set[str],
    optimizer: State,
    origin: Origin,
    pauses: dict[str, float],
) -> Training:
    """Write model.safetensors, history.csv and, last, train.json, beside the snapshots.

    Args:
        output: the folder.
        progress: where the run is: at its end.
        weights: the model's state_dict.
        trained: which of them are parameters.
        optimizer: the optimizer's state.
        origin: where the result came from.
        pauses: for how long checkpoints held the run up.

    Returns:
        What train.json holds.
    """
    state.save(weights, output / "model.safetensors", metadata(origin))
    history = pd.DataFrame(progress.history)
    with atomic(output / "history.csv") as draft:
        history.to_csv(draft, index=False)
    parameters = {name: value for name, value in weights.items() if name in trained}
    buffers = {name: value for name, value in weights.items() if name not in trained}
    snapshots = {path.name: sha256(path) for path in sorted((output / "snapshots").iterdir())}
    seconds = sum(row["seconds"] for row in progress.history)
    # A launch that found all done is no part of the run.
    segments = [s for s in progress.segments if s["last_step"] > s["first_step"]]
    best = best_of(progress.history)
    training = Training(
        **dict(origin),
        best=Best.model_validate(best) if best else None,
        stopped_early=len(progress.history) < origin.configuration.epochs,
        model_sha256=sha256(output / "model.safetensors"),
        parameters_sha256=state.digest(parameters),
        buffers_sha256=state.digest(buffers) if buffers else None,
        optimizer_sha256=state.digest(optimizer),
        history_sha256=state.digest(without_times(history, origin.task).to_csv(index=False)),
        history_csv_sha256=sha256(output / "history.csv"),
        snapshots_sha256=state.digest(snapshots),
        snapshots=snapshots,
        steps=progress.step,
        images_per_second=median(row[TASKS[origin.task].rate] for row in progress.history),
        seconds=seconds,
        bytes_sent=_by_rank([part["bytes_sent"] for part in segments]),
        peak_memory=max(most for part in segments for most in part["peak_memory"]),
        checkpoint_pauses=pauses,
        started=segments[0]["started"],
        segments=[Segment(**part) for part in segments],
    )
    write_training(output, training)
    return training


def make_row(
    epoch: int,
    lr: float,
    means: dict[str, float],
    samples: int,
    spent: dict[str, float],
    rate: str,
) -> dict[str, float]:
    """Return an epoch's row of history.csv, in which samples per second are called `rate`.

    Times are rank 0's, but for `idle_seconds`: by how much the ranks' communication is longer, in
    the mean, than that of the rank with the shortest, for which the others wait.
    """
    computed = spent["seconds"] - spent["input_seconds"] - spent["communication_seconds"]
    return {
        "epoch": epoch + 1,
        "lr": lr,
        **means,
        rate: samples / spent["seconds"],
        "seconds": spent["seconds"],
        "input_seconds": spent["input_seconds"],
        "compute_seconds": max(0.0, computed),
        "communication_seconds": spent["communication_seconds"],
        "idle_seconds": spent["idle_seconds"],
        **({VALIDATION: spent[VALIDATION]} if VALIDATION in spent else {}),
    }


def _by_rank(parts: list[list[int]]) -> list[int]:
    """Return what each rank has sent, over the parts of a run, in all of which it need not be."""
    return [sum(of_rank) for of_rank in itertools.zip_longest(*parts, fillvalue=0)]
