"""export: a trained model for others, in a form of torch's, of ONNX, or as plain weights.

What is exported takes inputs as they are (pixels, numbers, tokens): nothing has to be known of the
mean and the deviation that the model was trained with.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lockstep.errors import UserError, first_line, say
from lockstep.files import atomic, write_json, write_text
from lockstep.pipeline.kinds import TASKS
from lockstep.pipeline.model_file import about
from lockstep.pipeline.models import load
from lockstep.pipeline.record import Training, read_metrics, read_training
from lockstep.pipeline.stages.predict import model_file

# What a program that is exported is tried with: two samples or more, so that their number stays
# free.
SAMPLES = 2
# What a program that is exported takes, and what a person asks of its outputs, in Python.
DTYPES = {"classification": "uint8", "regression": "float32", "language": "int64"}
ANSWERS = {
    "classification": (".argmax(1)", "the class, from 0, in the order of the list above"),
    "regression": ("", "the numbers"),
    "language": ("[:, -1].argmax(1)", "the next token"),
}


class Whole(nn.Module):
    """A model behind the arithmetic of its inputs, as the training has it.

    Args:
        model: the network, in evaluation mode.
        training: what train.json says.
    """

    def __init__(self, model: nn.Module, training: Training) -> None:
        super().__init__()
        self.model = model
        scale = 255 if training.task == "classification" else 1
        around = (1, -1, *[1] * (len(training.shape) - 1))
        self.tokens = TASKS[training.task].integers
        std = [s or 1.0 for s in training.std]
        self.mean: torch.Tensor
        self.std: torch.Tensor
        self.register_buffer("mean", torch.tensor(training.mean).mul(scale).view(around))
        self.register_buffer("std", torch.tensor(std).mul(scale).view(around))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return logits, or numbers, of uint8 pixels (N x C x H x W), float32 numbers (N x C x …)
        or int64 tokens (N x T)."""
        if self.tokens:
            found: torch.Tensor = self.model(inputs)
            return found
        outputs: torch.Tensor = self.model((inputs.float() - self.mean) / self.std)
        return outputs


def export(results: Path, to: str, model: str, output: Path) -> Path:
    """Write a run's model to the folder `output`, with a model card, README.md.

    Args:
        results: the folder of the run.
        to: `torch` (a program of torch.export, model.pt2), `onnx` (model.onnx) or `safetensors`
            (the weights and config.json).
        model: `last` or `averaged`.
        output: a folder that is not there yet, or is empty.

    Returns:
        The file of the model.

    Raises:
        UserError: the run is damaged, the folder holds something, or the model cannot be written in
            this form.
    """
    training = read_training(results)
    path = model_file(results, training, model)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"output: {output} holds something; take a new folder")
    output.mkdir(parents=True, exist_ok=True)
    if to == "safetensors":
        target = output / "model.safetensors"
        with atomic(target) as draft:
            shutil.copyfile(path, draft)
        write_json(output / "config.json", about(training))
    else:
        target = output / ("model.pt2" if to == "torch" else "model.onnx")
        try:
            whole = Whole(load(path), training).eval()
            _write_program(whole, training, to, target)
        except UserError:
            raise
        except Exception as error:  # of torch's exporter, whatever the model has run it into
            raise UserError(
                f"export: {training.configuration.model} cannot be written as {to}: "
                f"{first_line(error)}; take --to safetensors"
            ) from error
    write_text(output / "README.md", card(results, training, model, target.name))
    return target


def _write_program(whole: Whole, training: Training, to: str, target: Path) -> None:
    dtype = getattr(torch, DTYPES[training.task])
    inputs = torch.zeros(SAMPLES, *training.shape, dtype=dtype)
    free = ({0: torch.export.Dim("samples")},)
    with atomic(target) as draft:
        if to == "torch":
            program = torch.export.export(whole, (inputs,), dynamic_shapes=free)
            torch.export.save(program, draft)
            return
        try:
            import onnxscript  # noqa: F401 - torch's exporter asks for it too late for one line
        except ModuleNotFoundError:
            raise UserError("export: ONNX wants packages: pip install onnx onnxscript") from None
        torch.onnx.export(
            whole,
            (inputs,),
            draft,
            dynamo=True,
            dynamic_shapes=free,
            input_names=["inputs"],
            output_names=["outputs"],
            external_data=False,
            verbose=False,
        )


def card(results: Path, training: Training, model: str, file: str) -> str:
    """Return a model card: what it is, what it has learned from, how good it is, how to load it."""
    run, kind = training.configuration, TASKS[training.task]
    said: dict[str, Any] = {}
    if (results / "metrics.json").exists():
        try:
            found = getattr(read_metrics(results, training), model)
        except UserError as error:
            say(f"the card says nothing of the test set: {error}")
        else:
            of_test = {name: getattr(found, name) for name in (*kind.compared, "loss")}
            said = {
                f"{kind.title(name)}, test set": kind.text(name, value)
                for name, value in of_test.items()
                if value is not None
            }
    inputs = {
        "classification": "uint8 pixels, N x C x H x W",
        "regression": "float32 numbers, N x C x …",
        "language": "int64 tokens, N x T",
    }[training.task]
    shape = " x ".join(map(str, training.shape))
    rows = {
        "model": f"`{run.model}`, {training.parameters:,} parameters ({model})",
        "task": training.task,
        "inputs": f"{shape}: {inputs}" if file != "model.safetensors" else shape,
        "outputs": f"{training.outputs} {kind.counted}",
        "data": training.dataset,
        "trained": f"{_epochs(results, training, model)}, batch {run.batch}, {run.optimizer}, "
        f"lr {run.lr:g}, seed {run.seed}",
        **said,
        "run": f"`{about(training)['run_sha256']}`",
        "license": "to be said by you",
    }
    lines = [f"# {training.dataset}: {run.model}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in rows.items()]
    if training.classes:
        lines += ["", "Classes, in the order of the outputs: " + ", ".join(training.classes) + "."]
    if training.image:
        lines += ["", f"Photos were brought to their size so: `{json.dumps(training.image)}`."]
    if file == "model.safetensors" and not kind.integers:
        values = "pixels / 255" if kind.classes else "numbers"
        lines += ["", f"Inputs are ({values} - mean) / std by channel; both are in `config.json`."]
    lines += ["", "In this folder:", "", "```python", *_how_to_call(file, training), "```"]
    lines += ["", "SHA-256 of the arrays that it has learned from, and was measured on:", ""]
    lines += [f"- `{name}`: `{digest}`" for name, digest in sorted(training.data_sha256.items())]
    return "\n".join([*lines, ""])


def _epochs(results: Path, training: Training, model: str) -> str:
    """Return how many epochs there were, and which of them is the model."""
    history = results / "history.csv"
    with history.open(encoding="utf-8") as file:
        done = f"{sum(1 for _ in file) - 1} epochs"
    if model == "averaged":
        count = len(training.snapshots)
        what = "replicas" if training.configuration.one_shot else "epochs' weights"
        return f"{done}; the mean of {count} {what}" if count > 1 else done
    if training.configuration.keep == "best" and training.best:
        return f"{done}, of which this is epoch {training.best.epoch}"
    return done


def _how_to_call(file: str, training: Training) -> list[str]:
    """Return a program that loads the file and calls it with an input of zeros."""
    size, dtype = ", ".join(map(str, (1, *training.shape))), DTYPES[training.task]
    answer, meaning = ANSWERS[training.task]
    if file == "model.onnx":
        return [
            "import numpy, onnxruntime",
            'model = onnxruntime.InferenceSession("model.onnx")',
            f'inputs = numpy.zeros(({size}), "{dtype}")',
            '(outputs,) = model.run(None, {"inputs": inputs})',
            f"print(outputs{answer})  # {meaning}",
        ]
    start = ["import torch", 'model = torch.export.load("model.pt2").module()']
    if file == "model.safetensors":
        dtype = "int64" if TASKS[training.task].integers else "float32"
        wants = f" and {own}" if ":" in (own := training.configuration.model) else ""
        start = [
            f"import torch  # wants the package lockstep{wants} as well, to build the model",
            "from lockstep.pipeline.models import load",
            'model = load("model.safetensors")',
        ]
    return [
        *start,
        f"inputs = torch.zeros({size}, dtype=torch.{dtype})",
        f"print(model(inputs){answer})  # {meaning}",
    ]
