"""ddp: torch's DistributedDataParallel, a rank's shards as one batch.

The usual way. Its sums are bracketed by rank, so the bits depend on how many there are.
"""

import time
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import GradBucket
from torch.nn.parallel import DistributedDataParallel

from lockstep import optim
from lockstep.comm.tree import block
from lockstep.comm.world import World
from lockstep.config import Run
from lockstep.data.batches import MicroBatch
from lockstep.parallel import Objective


class DataParallelByTorch:
    """DistributedDataParallel, with a hook that takes the time of its all-reduces."""

    def __init__(self, run: Run, model: nn.Module, objective: Objective, world: World) -> None:
        self.run, self.objective = run, objective
        self.shards: Sequence[int] = block(world.rank, world.size, run.shards)
        self.optimizer = optim.make_optimizer(run, model)
        self.model = DistributedDataParallel(model, gradient_as_bucket_view=True)
        self.communication = 0.0
        self.model.register_comm_hook(None, self._all_reduce)

    def step(self, micro_batches: Sequence[MicroBatch], lr: float) -> torch.Tensor:
        self.model.zero_grad()
        loss, sums = self.objective(self.model, micro_batches)
        loss.backward()
        optim.update(self.optimizer, lr, self.run.clip)
        return sums

    def totals(self, sums: torch.Tensor) -> torch.Tensor:
        dist.all_reduce(sums)
        return sums

    def model_state(self) -> dict[str, torch.Tensor]:
        return self.model.module.state_dict()

    def optimizer_state(self) -> dict[str, dict[str, torch.Tensor]]:
        return optim.state_of(self.optimizer, self.model.module)

    def _all_reduce(self, _: None, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
        # Buckets that are sent while backward goes on count as communication too.
        started = time.perf_counter()
        total = bucket.buffer().div_(dist.get_world_size())
        future = dist.all_reduce(total, async_op=True).get_future()

        def finish(done: torch.futures.Future[list[torch.Tensor]]) -> torch.Tensor:
            self.communication += time.perf_counter() - started
            return done.value()[0]

        return future.then(finish)
