"""What a trained model is used for gives what `evaluate` wrote, in every form, without the data."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx.reference
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from lockstep.pipeline.data.arrays import open_part
from tests.conftest import REPOSITORY, run, thorough
from tests.crew import run_shared

TASKS = {
    "classification": ["--model", "cnn"],
    "regression": ["--model", "mlp"],
    "language": ["--model", "gpt"],
}


def lockstep(*words, status=0):
    done = run_shared([sys.executable, "-m", "lockstep", *words], REPOSITORY)
    assert done.returncode == status, done.stderr
    return done


def train(data, folder, *flags):
    lockstep("partition", "--data", data, "--output", folder / "p", "--shards", 2)
    common = ["--ranks", 1, "--strategy", "single", "--shards", 2, "--epochs", 2, "--batch", 16]
    files = ["--data", data, "--partition", folder / "p/shards.csv", "--output", folder / "r"]
    lockstep("train", *files, *common, *flags)
    lockstep("average", "--results", folder / "r", "--data", data)
    lockstep("evaluate", "--results", folder / "r", "--data", data)


def save(task, path):
    random = np.random.default_rng(0)
    if task == "regression":
        inputs = random.normal(3, 2, (60, 5)).astype(np.float32)
        np.savez(path, inputs=inputs, targets=inputs[:, :2] - inputs[:, 2:4])
    elif task == "language":
        np.savez(path, tokens=(random.integers(0, 9, (60, 1)) + np.arange(12)) % 9)
    else:
        labels = np.arange(60) % 3
        images = random.integers(0, 90, (60, 20, 20, 3), np.uint8) + 80 * (labels == 1)[
            :, None, None, None
        ].astype(np.uint8)
        np.savez(path, images=images, labels=labels)


@pytest.fixture(
    scope="module", params=["classification", thorough("regression"), thorough("language")]
)
def trained(request, tmp_path_factory):
    """A task, the folder of a run by itself, and its test set."""
    task, folder = request.param, tmp_path_factory.mktemp(request.param)
    save(task, folder / "own.npz")
    data = folder / "data"
    lockstep(
        *("prepare", "--name", "npz", "--task", task, "--path", folder / "own.npz"),
        *("--output", data),
    )
    train(data, folder, *TASKS[task])
    kept = shutil.move(folder / "r", folder / "kept")
    part = open_part(data / "test", _kind(task))
    inputs = {"classification": "images", "regression": "inputs", "language": "tokens"}[task]
    whole = np.load(data / "test" / f"{inputs}.npy")
    shutil.rmtree(data)
    np.savez(folder / "test.npz", **{inputs: whole})
    return task, kept, whole, part


def _kind(task):
    from lockstep.pipeline.kinds import TASKS as KINDS

    return KINDS[task]


def test_what_is_predicted_is_what_evaluate_wrote(trained, tmp_path):
    task, kept, whole, _ = trained
    test = kept.parent / "test.npz"
    done = lockstep("predict", kept, test, "--csv", tmp_path / "p.csv")
    found = pd.read_csv(tmp_path / "p.csv")
    assert len(found) == len(whole)
    assert str(found["file"][0]) in done.stdout
    metrics = json.loads((kept / "metrics.json").read_text())["last"]
    if task == "classification":
        known = pd.read_csv(kept / "predictions.csv")
        assert (known["last"].astype(str) == found["prediction"].astype(str)).all()
        columns = ["p_0", "p_1", "p_2"]
        assert np.array_equal(known[columns], found[columns])
        lockstep("predict", kept, test, "--csv", tmp_path / "a.csv", "--model", "averaged")
        other = pd.read_csv(tmp_path / "a.csv")
        assert (known["averaged"].astype(str) == other["prediction"].astype(str)).all()
    elif task == "regression":
        known = pd.read_csv(kept / "predictions.csv")["last"].to_numpy().reshape(-1, 2)
        assert np.array_equal(known, found[["output_0", "output_1"]])
    else:
        assert found["loss"].mean() == pytest.approx(metrics["loss"], rel=1e-6)
        assert found["next"].between(0, 8).all()


def scores(task, kept, model):
    """Return what evaluate found of a model: probabilities, numbers or nothing."""
    table = pd.read_csv(kept / "predictions.csv")
    if task == "classification":
        return table[["p_0", "p_1", "p_2"]].to_numpy()
    return table["last"].to_numpy().reshape(-1, 2)


def _call_as_the_card_says(card, folder, to):
    """Run the program of a model card in its folder; every file that the card names is there."""
    named = set(re.findall(r"[\w/]+\.(?:json|pt2|onnx|safetensors|csv|py)\b", card))
    assert named <= {path.name for path in folder.iterdir()}
    (program,) = re.findall(r"```python\n(.*?)```", card, re.S)
    assert 3 <= program.count("\n") <= 6
    if to == "onnx":  # onnx's own interpreter is called as ONNX Runtime is
        program = program.replace("numpy, onnxruntime", "numpy; import onnx.reference")
        program = program.replace(
            "onnxruntime.InferenceSession", "onnx.reference.ReferenceEvaluator"
        )
    done = run([sys.executable, "-c", program], folder)
    assert done.returncode == 0, done.stderr
    assert re.search(r"\d", done.stdout)


@pytest.mark.parametrize("to", ["torch", "onnx", "safetensors"])
def test_what_is_exported_predicts_what_evaluate_wrote(trained, to, tmp_path):
    task, kept, whole, _ = trained
    lockstep("export", kept, "--to", to, "--output", tmp_path / "x")
    card = (tmp_path / "x" / "README.md").read_text()
    assert "test set | " in card
    _call_as_the_card_says(card, tmp_path / "x", to)
    if to == "safetensors":
        assert (tmp_path / "x/model.safetensors").read_bytes() == (
            kept / "model.safetensors"
        ).read_bytes()
        with safe_open(tmp_path / "x/model.safetensors", "pt") as file:
            about = json.loads(file.metadata()["lockstep"])
        assert about == json.loads((tmp_path / "x/config.json").read_text())
        return
    inputs = whole[:, :-1].astype(np.int64) if task == "language" else whole
    if task == "classification":
        inputs = np.ascontiguousarray(inputs.transpose(0, 3, 1, 2))
    if to == "torch":
        with torch.no_grad():
            outputs = torch.export.load(tmp_path / "x/model.pt2").module()(torch.from_numpy(inputs))
    else:
        session = onnx.reference.ReferenceEvaluator(str(tmp_path / "x/model.onnx"))
        outputs = torch.from_numpy(session.run(None, {"inputs": inputs})[0])
    if task == "language":
        targets = torch.from_numpy(whole[:, 1:].astype(np.int64))
        loss = torch.nn.functional.cross_entropy(outputs.flatten(0, 1), targets.flatten())
        known = json.loads((kept / "metrics.json").read_text())["last"]["loss"]
        assert loss.item() == pytest.approx(known, rel=1e-5)
        return
    found = outputs.softmax(1) if task == "classification" else outputs
    np.testing.assert_allclose(found.numpy(), scores(task, kept, "last"), rtol=1e-4, atol=2e-6)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A run that has learned from photos, and the photos."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for number in range(24):
        path = folder / "own" / ("light" if number % 2 else "dark") / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        level = 128 * (number % 2)
        small = random.integers(level, level + 120, (6, 8, 3), np.uint8)
        size = 90 + 7 * number, 200 - 5 * number
        Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(path)
    data = folder / "data"
    lockstep(
        *("prepare", "--name", "imagefolder", "--path", folder / "own", "--output", data),
        *("--size", "64", "--colour", "rgb"),
    )
    train(data, folder, "--model", "resnet18", "--batch", 4, "--epochs", 1)
    files = pd.read_csv(data / "test" / "files.csv")["file"]
    shutil.rmtree(data)
    return folder / "r", [folder / "own" / file for file in files]


def test_a_photo_is_treated_as_those_of_the_training(photos, tmp_path):
    kept, files = photos
    lockstep("predict", kept, *files, "--csv", tmp_path / "p.csv")
    found, known = pd.read_csv(tmp_path / "p.csv"), pd.read_csv(kept / "predictions.csv")
    assert np.array_equal(found[["p_dark", "p_light"]], known[["p_dark", "p_light"]])


def test_ten_lines_of_plain_pytorch_load_it(photos, tmp_path):
    kept, files = photos
    text = (REPOSITORY / "docs" / "use-a-model.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert "lockstep" not in code.replace('"lockstep"', "")
    (tmp_path / "load.py").write_text(code)
    known = pd.read_csv(kept / "predictions.csv")
    words = [sys.executable, tmp_path / "load.py", kept / "model.safetensors", files[0]]
    done = run(words, tmp_path)
    assert done.returncode == 0, done.stderr
    name, probability = done.stdout.split()
    assert name == known["last"][0]
    assert float(probability) == pytest.approx(known[f"p_{name}"][0], abs=2e-3)


def test_what_cannot_be_predicted_is_refused_in_one_line(photos, tmp_path):
    kept, files = photos
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(Path(files[0]).read_bytes()[:300])
    np.savez(tmp_path / "x.npz", images=np.zeros((2, 8, 8, 3), np.uint8))
    (tmp_path / "empty").mkdir()
    for words, said in (
        ([kept, bad], "bad.jpg: not a whole image"),
        ([kept, tmp_path / "x.npz"], "expected N x 64 x 64 x 3"),
        ([kept, tmp_path / "empty"], "there is no image"),
        ([kept, tmp_path / "none.jpg"], "none.jpg"),
        ([tmp_path / "no-run", bad], "train.json"),
    ):
        done = lockstep("predict", *words, status=2)
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("lockstep predict")]
        assert said in line
    words = [files[0], bad, tmp_path / "none.jpg", files[1]]
    done = lockstep("predict", kept, *words, "--csv", tmp_path / "p.csv", status=2)
    said = [line for line in done.stderr.splitlines() if line.startswith("lockstep predict")]
    assert ["bad.jpg" in said[0], "none.jpg" in said[1], len(said)] == [True, True, 2]
    assert list(pd.read_csv(tmp_path / "p.csv")["file"]) == [str(files[0]), str(files[1])]
    assert str(files[1]) in done.stdout
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "y").touch()
    done = lockstep("export", kept, "--to", "torch", "--output", tmp_path / "x", status=2)
    assert "holds something" in done.stderr
