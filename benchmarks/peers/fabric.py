"""Lightning Fabric: its DDP on two processes, and its loaders."""

import torch.nn.functional as F  # noqa: N812
from lightning_fabric import Fabric
from torch.utils.data import DataLoader

from benchmarks.peers.common import Images, arguments, network, optimizer, run


def main() -> None:
    args = arguments()
    precision = "bf16-mixed" if args.precision == "bfloat16" else "32-true"
    fabric = Fabric(accelerator="cpu", strategy="ddp", devices=2, precision=precision)
    fabric.launch()
    network_ = network(args)
    model, step = fabric.setup(network_, optimizer(args, network_))
    images, own = Images(args.data), args.batch // fabric.world_size
    loader = fabric.setup_dataloaders(
        DataLoader(images, own, shuffle=True, num_workers=args.workers)
    )

    def epoch(number: int) -> None:
        loader.sampler.set_epoch(number)
        for x, y in loader:
            step.zero_grad()
            fabric.backward(F.cross_entropy(model(x), y))
            step.step()

    run(args, epoch, network_, fabric.global_rank == 0)


if __name__ == "__main__":
    main()
