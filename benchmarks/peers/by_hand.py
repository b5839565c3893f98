"""torchrun, and gradients averaged over Gloo by hand, parameter by parameter."""

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from torch.utils.data import DataLoader, DistributedSampler

from benchmarks.peers.common import Images, arguments, network, optimizer, run


def main() -> None:
    args = arguments()
    dist.init_process_group("gloo")
    ranks, model, images = dist.get_world_size(), network(args), Images(args.data)
    sampler = DistributedSampler(images)
    loader = DataLoader(images, args.batch // ranks, sampler=sampler, num_workers=args.workers)
    step = optimizer(args, model)

    def epoch(number: int) -> None:
        sampler.set_epoch(number)
        for x, y in loader:
            step.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, args.precision == "bfloat16"):
                outputs = model(x)
            F.cross_entropy(outputs.float(), y).backward()
            for parameter in model.parameters():
                dist.all_reduce(parameter.grad)
                parameter.grad /= ranks
            step.step()

    run(args, epoch, model, dist.get_rank() == 0)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
