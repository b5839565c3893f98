"""What models got wrong: of classes the confusion matrix and the mistakes they were surest of, as
pictures; of numbers the largest errors."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lockstep.errors import UserError
from lockstep.files import DAMAGE
from lockstep.pipeline.data.arrays import open_part
from lockstep.pipeline.data.manifest import read_manifest
from lockstep.pipeline.kinds import MODELS
from lockstep.pipeline.page.collect import Found

# Classes up to which there is a matrix; of more, the most frequent confusions.
MOST_CLASSES = 20
MOST_PAIRS = 30
# Mistakes that are shown of a model.
SHOWN = 24
# Bytes of pictures in a page, and the pixels of a side of one.
MOST_BYTES = 700_000
SIDE = 64


def errors_of(found: Found) -> dict[str, Any]:
    """Return what the page shows of a run's errors, by model; nothing where nothing is known."""
    if found.predictions is None:
        return {}
    describe = _of_classes if found.kind.classes else _of_numbers
    return {model: describe(found, found.predictions, model) for model in MODELS}


def _of_classes(found: Found, table: pd.DataFrame, model: str) -> dict[str, Any]:
    assert found.training
    classes = found.training.classes
    true = pd.Categorical(table["label"], classes).codes.astype(int)
    said = pd.Categorical(table[model], classes).codes.astype(int)
    counts = np.zeros((len(classes), len(classes)), int)
    np.add.at(counts, (true, said), 1)
    rows = [[k, int(counts[k].sum()), int(counts[k, k])] for k in range(len(classes))]
    few = len(classes) <= MOST_CLASSES
    if not few:
        rows = sorted(rows, key=lambda row: row[2] / max(row[1], 1))[:MOST_PAIRS]
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_PAIRS]
    pairs = [
        [*divmod(int(at), len(classes)), int(wrong.flat[at])] for at in order if wrong.flat[at]
    ]
    mistakes = table[true != said]
    sure = model == "last" and "sure" in table
    if sure:
        mistakes = mistakes.sort_values("sure", ascending=False, kind="stable")
    return {
        "matrix": counts.tolist() if few else None,
        "recall": rows,
        "pairs": pairs,
        "right": int(np.diag(counts).sum()),
        "samples": len(table),
        "mistakes": [
            [
                int(row["sample"]),
                str(row["label"]),
                str(row[model]),
                round(float(row["sure"]), 4) if sure else None,
                str(row.get("file", "")),
            ]
            for row in mistakes.head(SHOWN).to_dict("records")
        ],
    }


def _of_numbers(found: Found, table: pd.DataFrame, model: str) -> dict[str, Any]:
    error = (table[model] - table["target"]).rename("error")
    order = error.abs().sort_values(ascending=False, kind="stable").index[:SHOWN]
    return {
        "largest": [
            [int(table["sample"][at]), int(table["output"][at])]
            + [
                float(f"{value:.5g}")
                for value in (table["target"][at], table[model][at], error[at])
            ]
            for at in order
        ]
    }


def pictures(found: Sequence[Found], errors: dict[str, Any]) -> dict[int, str]:
    """Return the pictures of mistakes by sample, as data: URIs, the first runs' first, until there
    are enough bytes of them; none where the images are elsewhere, or others."""
    shown: dict[int, str] = {}
    size = 0
    able = [one for one in found if one.training and one.kind.classes and one.name in errors]
    images = _images(able[0]) if able else None
    if images is None:
        return shown
    for one in able:
        if one.data_sha256 != able[0].data_sha256:
            continue  # its samples of the same numbers are others
        for model in MODELS:
            for sample, *_ in errors[one.name][model]["mistakes"]:
                if sample in shown or sample >= len(images):
                    continue
                picture = _picture(images[sample])
                size += len(picture)
                if size > MOST_BYTES:
                    return shown
                shown[sample] = picture
    return shown


def _images(found: Found) -> np.ndarray | None:
    """Return the test set's images (uint8, N x H x W x C) that a run was tested on."""
    assert found.training
    data = Path(found.training.data)
    try:
        if read_manifest(data).sha256 != found.training.data_sha256:
            return None
        return open_part(data / "test", found.kind).inputs
    except (UserError, *DAMAGE):
        return None


def _picture(image: np.ndarray) -> str:
    from PIL import Image

    channels = image.shape[-1]
    pixels = np.asarray(image[..., :3] if channels >= 3 else image[..., 0])
    made = Image.fromarray(pixels)
    made.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    made.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
