"""ddp: torch's DistributedDataParallel, a rank's shards as one batch.

The usual way. Its sums are bracketed by rank, so the bits depend on how many there are.
"""

import re
import time
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch.distributed import GradBucket
from torch.nn.parallel import DistributedDataParallel

from lockstep.errors import UserError
from lockstep.reduce.accumulator import total_items
from lockstep.strategies import Setup
from lockstep.strategies.replicated import Replicated
from lockstep.strategies.task import MicroBatch


class DataParallelByTorch(Replicated):
    """DistributedDataParallel, with a hook that takes the time of its all-reduces."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.shared = DistributedDataParallel(self.model, gradient_as_bucket_view=True)
        self.shared.register_comm_hook(None, self._all_reduce)

    def step(self, micro_batches: Sequence[MicroBatch], lr: float) -> None:
        self.shared.zero_grad()
        try:
            loss = self.task(self.shared, micro_batches)
        except RuntimeError as error:
            raise self._plainer(error) from None
        started = time.perf_counter()
        self.items = total_items(loss.items)
        self.communication += time.perf_counter() - started
        loss.value.backward()
        self.metrics.add(micro_batches[0].shard, loss.sums())
        self.update(micro_batches[0].step, lr)

    def alike(self) -> dict[str, torch.Tensor]:
        # Buffers are rank 0's from the next forward pass on.
        weights = {name: p.detach() for name, p in self.model.named_parameters()}
        return weights | self.kept_alike()

    def _plainer(self, error: RuntimeError) -> Exception:
        """Return what torch says of parameters that were not used, in a line."""
        if "did not receive grad" not in str(error):
            return error
        names = [name for name, p in self.model.named_parameters() if p.requires_grad]
        unused = [names[int(i)] for i in re.findall(r"\d+", str(error).rpartition(":")[2])]
        return UserError(
            f"strategy: ddp wants every parameter used in every step, and {', '.join(unused[:3])} "
            f"{'was' if len(unused) == 1 else 'were'} not; take sync_sgd, or freeze it"
        )

    def _all_reduce(self, _: None, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
        # Buckets that are sent while backward goes on count as communication too.
        started = time.perf_counter()
        total = bucket.buffer().div_(self.items)
        future = dist.all_reduce(total, async_op=True).get_future()

        def finish(done: torch.futures.Future[list[torch.Tensor]]) -> torch.Tensor:
            self.communication += time.perf_counter() - started
            return done.value()[0]

        return future.then(finish)
