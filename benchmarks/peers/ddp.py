"""torchrun, DistributedDataParallel, Gloo, DistributedSampler, DataLoader."""

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from benchmarks.peers.common import Images, arguments, network, optimizer, run


def main() -> None:
    args = arguments()
    dist.init_process_group("gloo")
    model = DistributedDataParallel(network(args))
    images = Images(args.data)
    sampler = DistributedSampler(images)
    loader = DataLoader(
        images, args.batch // dist.get_world_size(), sampler=sampler, num_workers=args.workers
    )
    step = optimizer(args, model)

    def epoch(number: int) -> None:
        sampler.set_epoch(number)
        for x, y in loader:
            step.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, args.precision == "bfloat16"):
                outputs = model(x)
            F.cross_entropy(outputs.float(), y).backward()
            step.step()

    run(args, epoch, model.module, dist.get_rank() == 0)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
