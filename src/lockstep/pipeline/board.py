"""The history of a run as TensorBoard reads it; history.csv, from the same rows, stays the truth.

What is there is written anew from those rows whenever a training begins or goes on. So no epoch is
lost or there twice, whatever became of the process that wrote them before.
"""

import shutil
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from lockstep.checkpoint.state import Progress
from lockstep.errors import UserError
from lockstep.pipeline.config import Run

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

# In the folder of the run.
FOLDER = "tensorboard"


def check(run: Run) -> None:
    """Refuse a run that is to be written for TensorBoard where that is not installed.

    Raises:
        UserError: it is not.
    """
    if run.tensorboard and find_spec("tensorboard") is None:
        raise UserError(
            "tensorboard: is not installed; pip install tensorboard, or set the key to false"
        )


def begin(folder: Path, progress: Progress) -> "SummaryWriter":
    """Begin the folder anew, with the epochs that are over, and return its writer."""
    from torch.utils.tensorboard import SummaryWriter

    shutil.rmtree(folder, ignore_errors=True)
    # A TensorBoard that has been looking on forgets what it has read.
    writer = SummaryWriter(str(folder), purge_step=1)
    for epoch in range(len(progress.history)):
        _write(writer, progress, epoch)
    writer.flush()
    return writer


def add(writer: "SummaryWriter", progress: Progress) -> None:
    """Write the epoch that is over."""
    _write(writer, progress, len(progress.history) - 1)
    writer.flush()


def _write(writer: "SummaryWriter", progress: Progress, index: int) -> None:
    """Write the columns of a row, at the step that is its epoch, and the time that it had taken."""
    spent = sum(row["seconds"] for row in progress.history[: index + 1])
    when = datetime.fromisoformat(progress.segments[0]["started"]).timestamp() + spent
    row = progress.history[index]
    for name, value in row.items():
        if name != "epoch":
            writer.add_scalar(name, value, int(row["epoch"]), when)
