"""data_parallel: torch's DataParallel, all shards in one batch that one process's GPUs share.

The simplest use of several GPUs, and the slowest: the model is copied to them at every step. On a
CPU there is nothing to share, and the model is called as it is.
"""

import sys
from collections.abc import Sequence

import torch
from torch import nn

from lockstep.strategies import Setup
from lockstep.strategies.replicated import Replicated
from lockstep.strategies.task import MicroBatch


class DataParallel(Replicated):
    """nn.DataParallel over all GPUs that this process sees; BatchNorm's are the first one's.

    Copies between GPUs cannot be told from computing: there is no communication to time.
    """

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        on_gpu = next(self.model.parameters()).is_cuda
        self.shared = nn.DataParallel(self.model) if on_gpu else self.model
        where = (
            f"{torch.cuda.device_count()} GPUs" if on_gpu else "a CPU, which is no more than one"
        )
        print(f"data_parallel: computing on {where}", file=sys.stderr, flush=True)

    def step(self, micro_batches: Sequence[MicroBatch], lr: float) -> None:
        self.optimizer.zero_grad()
        loss = self.task(self.shared, micro_batches)
        (loss.value / loss.items).backward()
        self.metrics.add(micro_batches[0].shard, loss.sums())
        self.update(micro_batches[0].step, lr)
