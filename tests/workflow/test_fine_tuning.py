"""docs/fine-tuning.md, as it is written: photos of all sizes, a network that was trained before."""

import re
import shlex

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from PIL import Image

from tests.conftest import REPOSITORY, run

COLOURS = {"rose": (200, 40, 60), "tulip": (230, 190, 40)}


def photo(colour: tuple[int, int, int], size: tuple[int, int], seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).integers(-40, 40, (size[1], size[0], 3))
    return Image.fromarray(np.clip(noise + colour, 0, 255).astype(np.uint8))


@pytest.mark.thorough
@pytest.mark.timeout(900)  # ten epochs of two runs of a ResNet-18 at 224 pixels
def test_the_page_can_be_followed(workspace):
    page = (REPOSITORY / "docs/fine-tuning.md").read_text()
    config, table = re.findall(r"```(?:yaml|tsv)\n(.*?)```", page, re.DOTALL)[:2]
    workspace.write("config/flowers.yaml", config)
    workspace.write("config/flowers.tsv", table)
    for name, colour in COLOURS.items():
        (workspace.folder / "photos" / name).mkdir(parents=True)
        for number in range(40):
            some = photo(colour, (240 + 7 * number, 400 - 5 * number), number)
            some.save(workspace.folder / "photos" / name / f"{number}.jpg")
    (workspace.folder / "holiday").mkdir()
    for name, colour in COLOURS.items():
        photo(colour, (500, 300), 99).save(workspace.folder / "holiday" / f"{name}.png")
    # "Or you put the file in its place": nothing is fetched here.
    weights = workspace.folder / "data/weights/resnet18-IMAGENET1K_V1.pth"
    weights.parent.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18().state_dict(), weights)

    make, predict = (
        shlex.split(line) for line in re.findall(r"^((?:make|lockstep) .*)", page, re.MULTILINE)
    )
    assert make == ["make", "run", "CONFIG=config/flowers.yaml"]  # which is this:
    done = workspace.snakemake("--configfile", "config/flowers.yaml", timeout=800)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = pd.read_csv(workspace.folder / "results/flowers/summary.csv")
    assert list(summary["run"]) == ["first", "second"]
    for name in summary["run"]:
        history = pd.read_csv(workspace.folder / "results/flowers" / name / "history.csv")
        assert history["loss"].iloc[-1] < history["loss"].iloc[0]
        assert "validation_loss" in history
    done = run(predict, workspace.folder)
    assert done.returncode == 0, done.stderr
    for name in COLOURS:
        assert re.search(rf"{name}\.png +(rose|tulip) +\d", done.stdout), done.stdout
