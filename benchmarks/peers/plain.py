"""Plain torch in one process: ready tensors, the same micro-batches, nothing distributed."""

import torch
import torch.nn.functional as F  # noqa: N812

from benchmarks.peers.common import Images, arguments, network, optimizer, run

SHARDS = 4


def main() -> None:
    args = arguments()
    torch.set_flush_denormal(True)
    model, images = network(args), Images(args.data)
    model = model.to(memory_format=torch.channels_last)
    x = torch.stack([images[at][0] for at in range(len(images))])
    x, y = x.to(memory_format=torch.channels_last), torch.from_numpy(images.labels)
    step, own = optimizer(args, model), args.batch // SHARDS

    def epoch(number: int) -> None:
        order = torch.randperm(len(x))[: len(x) // args.batch * args.batch]
        for batch in order.split(args.batch):
            step.zero_grad()
            for some in batch.split(own):
                with torch.autocast("cpu", torch.bfloat16, args.precision == "bfloat16"):
                    outputs = model(x[some])
                (F.cross_entropy(outputs.float(), y[some], reduction="sum") / args.batch).backward()
            step.step()

    run(args, epoch, model, True)


if __name__ == "__main__":
    main()
