"""predict: show a trained model something new. It needs the run's folder, and no data set."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from lockstep.errors import UserError, in_one_line, say
from lockstep.files import atomic, check_sha256
from lockstep.pipeline.data.folder import SUFFIXES, files_below
from lockstep.pipeline.data.npz import Npz
from lockstep.pipeline.data.pixels import Look, decode
from lockstep.pipeline.data.stream import check_tokens
from lockstep.pipeline.kinds import MODELS, TASKS
from lockstep.pipeline.model_file import manifest_of
from lockstep.pipeline.models import load
from lockstep.pipeline.record import Training, read_averaged, read_training
from lockstep.pipeline.tasks.classification import Classification, probability_columns
from lockstep.pipeline.tasks.language import PADDING, Language
from lockstep.pipeline.tasks.make import make
from lockstep.pipeline.tasks.supervised import Supervised
from lockstep.reduce.layout import move
from lockstep.session import Session

# How many of the likeliest classes the terminal shows.
BEST = 3


def predict(
    results: Path, files: Sequence[Path], model: str, csv: Path | None
) -> tuple[pd.DataFrame, list[Path]]:
    """Say what the model makes of each photo, or of each sample of an .npz.

    A photo is treated as `prepare` has treated those that the model has learned from. What is
    computed is what `evaluate` computes: of the same samples in the same order, the same bits.

    Args:
        results: the folder of the run.
        files: photos, folders of photos, or .npz files with `images`, `inputs` or `tokens`.
        model: `last` or `averaged`.
        csv: a file to write the whole table to.

    Returns:
        A table with a row for each: of a classification `prediction` and the probability of each
        class, `p_<class>`; of a regression `output_<k>`; of language the loss in nats per token,
        and the next token. And the photos that cannot be read, which have no row: of each it is
        said why.

    Raises:
        UserError: the run or an .npz is damaged, or is nothing that the model takes.
    """
    training = read_training(results)
    manifest, run = manifest_of(training), training.configuration
    # What a class counts for in the training says nothing here.
    run = run.model_copy(update={"class_weights": "none"})
    path = model_file(results, training, model)
    with Session(ranks=1, threads=run.threads, device=run.device, saves=False) as session:
        task = make(run, manifest, session.device)
        network = load(path)
        move(network, session.device)
        parts, bad = [], list[Path]()
        for names, arrays in _chunks(files, training, task.chunk, bad):
            outputs = _outputs(network, task, arrays)
            columns = _columns(task, training.classes, names, arrays, outputs)
            if isinstance(task, Language):
                columns |= _following(network, task, arrays, outputs)
            parts.append(pd.DataFrame(columns))
    if not parts and not bad:
        raise UserError(f"predict: there is no image in {', '.join(map(str, files))}")
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    if csv is not None and parts:
        with atomic(csv) as draft:
            table.to_csv(draft, index=False)
    return table, bad


def for_terminal(table: pd.DataFrame) -> str:
    """Return predictions for a person: of many classes, the likeliest ones."""
    columns = [name for name in table if str(name).startswith("p_")]
    if not columns:
        return table.round(6).to_string(index=False)
    probabilities = table[columns].to_numpy()
    rows = []
    for name, prediction, some in zip(
        table["file"], table["prediction"], probabilities, strict=True
    ):
        best = np.argsort(-some, kind="stable")[:BEST]
        others = ", ".join(f"{columns[i][2:]} {some[i]:.1%}" for i in best[1:])
        row = {"file": name, "prediction": prediction, "probability": f"{some[best[0]]:.1%}"}
        rows.append(row | {"then": others})
    return pd.DataFrame(rows).to_string(index=False)


def model_file(results: Path, training: Training, model: str) -> Path:
    """Return the file of a run's last or averaged model.

    Raises:
        UserError: it is missing, or not what the record says.
    """
    path = results / MODELS[model]
    expected = training.model_sha256
    if model == "averaged":
        expected = read_averaged(results, training).model_sha256
    check_sha256(path, expected, results, "train again")
    return path


def _chunks(
    files: Sequence[Path], training: Training, size: int, bad: list[Path]
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Yield names and inputs, as they lie on disk in a prepared part, so many at a time."""
    names: list[str] = []
    arrays: list[np.ndarray] = []
    for name, array in _samples(files, training, bad):
        names.append(name)
        arrays.append(array)
        if len(names) == size:
            yield names, np.stack(arrays)
            names, arrays = [], []
    if names:
        yield names, np.stack(arrays)


def _samples(
    files: Sequence[Path], training: Training, bad: list[Path]
) -> Iterator[tuple[str, np.ndarray]]:
    for path in files:
        if path.suffix == ".npz":
            array = _array(path, training)
            yield from ((f"{path}:{row}", one) for row, one in enumerate(array))
        elif training.task != "classification":
            raise UserError(f"{path}: expected an .npz for {training.task}")
        else:
            yield from _photos(path, training, bad)


def _photos(path: Path, training: Training, bad: list[Path]) -> Iterator[tuple[str, np.ndarray]]:
    channels, *size = training.shape
    if channels not in (1, 3):
        raise UserError(
            f"{path}: the model takes {channels} channels, and photos have 1 or 3; expected an .npz"
        )
    known = Look.of(training.image) if training.image else Look()
    look = Look((size[0], size[1]), known.resize, "grey" if channels == 1 else "rgb")
    photos = (
        [file for file in files_below(path) if file.name.lower().endswith(SUFFIXES)]
        if path.is_dir()
        else [path]
    )
    told = known.size is not None
    for photo in photos:
        try:
            if not photo.is_file():
                raise UserError(f"{photo}: there is no such file")
            pixels = decode(photo, look, photo)
            own = None if told else decode(photo, Look(), photo).shape[:2]
        except (UserError, OSError) as error:
            say(f"lockstep predict: {in_one_line(error)}")
            bad.append(photo)
            continue
        if own and own != look.size:
            say(
                f"{photo}: is {own[1]} x {own[0]} pixels; its middle is brought to {size[1]} x "
                f"{size[0]}, those that the model has learned from"
            )
            told = True
        yield str(photo), pixels


def _array(path: Path, training: Training) -> np.ndarray:
    """Return the array of an .npz that a model takes as its inputs."""
    kind = TASKS[training.task]
    name = kind.arrays[0].name
    npz = Npz(path)
    npz.check_names(name)
    array = npz.whole(name)
    first, *rest = training.shape
    expected = (first,) if kind.integers else (*rest, first)
    if kind.classes and array.ndim == len(expected):
        array = array[..., None]
    fits = [expected, (first + 1,)] if kind.integers else [expected]
    if array.shape[1:] not in fits or (kind.classes and array.dtype != np.uint8):
        raise UserError(
            f"{path}: {name} is {array.dtype} {array.shape}, expected N x "
            f"{' x '.join(map(str, expected))}, as the model has learned from"
        )
    if kind.integers:
        if array.dtype.kind not in "iu":
            raise UserError(f"{path}: {name} is {array.dtype}, expected integers")
        check_tokens(array, 1, f"{path}: {name}")
        if (unknown := np.argwhere(array >= training.outputs)).size:
            row, place = unknown[0]
            raise UserError(
                f"{path}: {name}: sequence {row} has {array[row, place]}, expected 0 to "
                f"{training.outputs - 1}, the tokens that the model has learned"
            )
    if not kind.classes:
        array = array.astype(np.int32 if kind.integers else np.float32)
    return array


def _outputs(network: nn.Module, task: Supervised, arrays: np.ndarray) -> torch.Tensor:
    with torch.inference_mode():
        inputs = arrays[:, : task.shape[0]] if arrays.dtype == np.int32 else arrays
        return task.forward(network, task.normalize(inputs)).float().cpu()


def _columns(
    task: Supervised,
    classes: list[str],
    names: list[str],
    arrays: np.ndarray,
    outputs: torch.Tensor,
) -> dict[str, Any]:
    """Return the columns of what a person reads out of a chunk's outputs."""
    columns: dict[str, Any] = {"file": names}
    if isinstance(task, Classification):
        columns["prediction"] = np.array(classes, object)[outputs.argmax(dim=1).numpy()]
        columns |= probability_columns(outputs.softmax(dim=1).numpy(), classes)
    elif isinstance(task, Language):
        length = outputs.shape[1]
        if arrays.shape[1] > length:
            targets = torch.from_numpy(arrays[:, 1:]).long()
            columns["loss"] = task.each(outputs, targets) / (targets != PADDING).sum(dim=1)
    else:
        columns |= {f"output_{k}": outputs[:, k] for k in range(outputs.shape[1])}
    return columns


def _following(
    network: nn.Module, task: Language, arrays: np.ndarray, outputs: torch.Tensor
) -> dict[str, Any]:
    """Return which token follows each sequence, by the last tokens that the model takes."""
    length = task.shape[0]
    # A sequence may have one token more than the model takes, the last that it was to foretell.
    full = (arrays[:, length:] != PADDING).any(axis=1)[:, None]
    taken = np.where(full, arrays[:, -length:], arrays[:, :length])
    if full.any():
        outputs = _outputs(network, task, taken)
    last = (taken != PADDING).sum(axis=1) - 1
    following = outputs[torch.arange(len(outputs)), last].softmax(dim=1)
    return {"next": following.argmax(dim=1), "probability": following.max(dim=1).values}
