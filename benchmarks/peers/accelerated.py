"""Hugging Face Accelerate, by torchrun."""

import torch.nn.functional as F  # noqa: N812
from accelerate import Accelerator
from torch.utils.data import DataLoader

from benchmarks.peers.common import Images, arguments, network, optimizer, run


def main() -> None:
    args = arguments()
    accelerator = Accelerator(
        cpu=True, mixed_precision="bf16" if args.precision == "bfloat16" else "no"
    )
    network_ = network(args)
    own = args.batch // accelerator.num_processes
    images = DataLoader(Images(args.data), own, shuffle=True, num_workers=args.workers)
    model, step, loader = accelerator.prepare(network_, optimizer(args, network_), images)

    def epoch(number: int) -> None:
        loader.set_epoch(number)
        for x, y in loader:
            step.zero_grad()
            accelerator.backward(F.cross_entropy(model(x), y))
            step.step()

    run(args, epoch, network_, accelerator.is_main_process)
    accelerator.end_training()


if __name__ == "__main__":
    main()
