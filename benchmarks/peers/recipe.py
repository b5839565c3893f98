"""The recipe of config/fast-cifar10.yaml in plain torch: one process, with all images in memory.

python -m benchmarks.peers.recipe CONFIGURATION DATA OUTPUT
"""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
import yaml
from safetensors.torch import save_file

from examples.fast_cifar10 import net
from lockstep.pipeline.data.manifest import read_manifest


def main() -> None:
    configuration, data, output = sys.argv[1:]
    keys = yaml.safe_load(Path(configuration).read_text())["defaults"]
    torch.manual_seed(keys["seed"])
    torch.set_flush_denormal(True)
    x, y = images(Path(data), "train")
    batch, shift, steps = keys["batch"], keys["shift"], len(x) // keys["batch"]
    model = net((3, 32, 32), 10).to(memory_format=torch.channels_last)
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": keys["weight_decay"]},
        {"params": [p for p in trained if p.ndim == 1]},
    ]
    options = {"momentum": keys["momentum"], "nesterov": True, "fused": True}
    optimizer = torch.optim.SGD(groups, keys["lr"], **options)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, keys["lr"], keys["epochs"] * steps, cycle_momentum=False
    )
    # Black beside an image, as it is once it was normalised.
    dark = x.amin((0, 2, 3), keepdim=True)
    for _ in range(keys["epochs"]):
        for some in torch.randperm(len(x)).split(batch)[:steps]:
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, keys["precision"] == "bfloat16"):
                logits = model(augmented(x[some], shift, dark))
            loss = F.cross_entropy(logits.float(), y[some], label_smoothing=keys["label_smoothing"])
            loss.backward()
            optimizer.step()
            schedule.step()
    save_file({name: t.contiguous() for name, t in model.state_dict().items()}, output)


def images(folder: Path, part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return normalised images (float32, N x 3 x 32 x 32) and labels (int64, N)."""
    manifest = read_manifest(folder)
    pixels = torch.from_numpy(np.load(folder / part / "images.npy")).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(some).view(3, 1, 1) for some in (manifest.mean, manifest.std))
    return (pixels / 255 - mean) / std, torch.from_numpy(np.load(folder / part / "labels.npy"))


def augmented(x: torch.Tensor, shift: int, dark: torch.Tensor) -> torch.Tensor:
    """Shift and mirror each image of a batch at random."""
    count, _, height, width = x.shape
    padded = dark.repeat(count, 1, height + 2 * shift, width + 2 * shift)
    padded[:, :, shift:-shift, shift:-shift] = x
    down, right = torch.randint(2 * shift + 1, (2, count, 1))
    columns = torch.arange(width).expand(count, width)
    columns = torch.where(torch.rand(count, 1) < 0.5, columns, columns.flip(1)) + right
    rows = torch.arange(height) + down
    which = torch.arange(count)[:, None, None]
    moved = padded.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2)


if __name__ == "__main__":
    main()
