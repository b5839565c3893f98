"""The user's own data and model, and what is said when they are wrong."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

MODEL = """
from torch import nn


def tiny(shape, classes):
    pixels = shape[0] * shape[1] * shape[2]
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, 16), nn.ReLU(), nn.Linear(16, classes))
"""

CONFIG = """
dataset: {{name: {name}, path: {path}}}
runs: config/mine.tsv
defaults:
  model: zoo.models:tiny
  shards: 2
  batch: 8
  epochs: 3
"""


def squares(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images with a bright square in one of three places, and which."""
    draw = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    images = draw.integers(0, 60, (count, 12, 12, 3), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[4 * label : 4 * label + 4, 4:8] += 150
    return images, labels


@pytest.fixture
def mine(workspace):
    workspace.write("zoo/models.py", MODEL)
    workspace.write("config/mine.tsv", "run\tranks\nmine\t2\n")
    return workspace


def accuracy(workspace) -> float:
    return pd.read_csv(workspace.folder / "results/mine/summary.csv")["accuracy_last"][0]


@pytest.mark.thorough
def test_an_npz_and_a_model_of_ones_own(mine):
    images, labels = squares(60, seed=0)
    test_images, test_labels = squares(30, seed=1)
    np.savez(
        mine.folder / "squares.npz",
        images=images,
        labels=labels,
        test_images=test_images,
        test_labels=test_labels,
    )
    config = mine.write("config/mine.yaml", CONFIG.format(name="npz", path="squares.npz"))
    done = mine.snakemake("--configfile", config)
    assert done.returncode == 0, done.stdout + done.stderr
    assert accuracy(mine) >= 0.9
    # The model's code is part of what train depends on; a comment in it is not.
    (mine.folder / "zoo/models.py").write_text("# tiny, but ours\n" + MODEL)
    assert mine.jobs("--configfile", config) == {}
    (mine.folder / "zoo/models.py").write_text(MODEL.replace("16", "24"))
    assert mine.jobs("train", "--configfile", config) == {"train_run": 1, "train": 1}


@pytest.mark.thorough
def test_a_folder_of_images(mine):
    images, labels = squares(60, seed=0)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = mine.folder / "pictures" / "abc"[label] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    config = mine.write("config/mine.yaml", CONFIG.format(name="imagefolder", path="pictures"))
    done = mine.snakemake("summarize", "--configfile", config)
    assert done.returncode == 0, done.stdout + done.stderr
    assert accuracy(mine) >= 0.9
    predictions = pd.read_csv(mine.folder / "results/mine/mine/predictions.csv")
    assert len(predictions) == 12


@pytest.mark.thorough
def test_a_model_that_does_not_take_the_input_stops_before_training(mine):
    images, labels = squares(60, seed=0)
    np.savez(mine.folder / "squares.npz", images=images, labels=labels)
    mine.write("zoo/models.py", MODEL.replace("shape[0] *", "7 *"))
    config = mine.write("config/mine.yaml", CONFIG.format(name="npz", path="squares.npz"))
    done = mine.snakemake("--configfile", config)
    said = done.stdout + done.stderr
    assert done.returncode == 1
    assert (
        "lockstep check, rank 0: model: zoo.models:tiny does not take images of (3, 12, 12)" in said
    )
    assert not (mine.folder / "results/mine/mine").exists()
