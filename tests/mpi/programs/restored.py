"""A program for any number of ranks: what a session sets in its process, it sets back."""

import contextlib
import os
import signal
import sys
import threading
import time
from typing import Any

import torch
import torch.distributed as dist

import lockstep
from lockstep.distributed.ending import death_signal, set_death_signal


def state() -> dict[str, Any]:
    """Return what a session may have changed in this process."""
    return {
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "fill": torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        "benchmark": torch.backends.cudnn.benchmark,
        "denormals": torch.tensor(1e-40).mul(0.5).item(),
        "handlers": [signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGTERM)],
        "mask": signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        "excepthook": sys.excepthook,
        "death signal": death_signal(),
        "group": dist.is_initialized(),
        "environment": dict(os.environ),
        "others": sorted(thread.name for thread in threading.enumerate()),
    }


def train(folder: str) -> None:
    """Take some steps, in a session, and change what is the user's affair."""
    with lockstep.init(shards=4, threads=2) as session:
        model = session.build(torch.nn.Linear, 2, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        run = session.run(model, optimizer, folder)
        for step in run.steps(samples=16, batch=8, epochs=2):
            for shard in step:
                inputs = torch.as_tensor(shard.ids).float().view(-1, 1) / 16
                shard.backward(model(inputs.expand(-1, 2)).square().sum(), items=len(inputs))
            optimizer.step()
        os.environ["OF_THE_USER"] = "1"
        inside = state()
    print("model", run.sha256, flush=True)
    assert inside["threads"] == 2
    assert inside["deterministic"]
    assert inside["denormals"] == 0.0
    assert inside["group"]


def main(folder: str) -> None:
    torch.set_num_threads(3)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_flush_denormal(False)
    signal.signal(signal.SIGUSR1, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    sys.excepthook = lambda *what: sys.__excepthook__(*what)
    set_death_signal(signal.SIGINT)
    before = state()
    for turn in range(2):
        os.environ.pop("OF_THE_USER", None)
        train(f"{folder}/{turn}")
        assert os.environ.pop("OF_THE_USER") == "1"
        after = state()
        for _ in range(100):  # a thread that was told to end takes a moment
            if after == before:
                break
            time.sleep(0.1)
            after = state()
        odd = {name: (before[name], after[name]) for name in before if before[name] != after[name]}
        assert not odd, odd
    with contextlib.suppress(ValueError), lockstep.init(shards=4) as session:
        if session.size == 1:  # of several, one that fails ends them all
            raise ValueError
    time.sleep(0.5)
    assert state() == before
    print("set back", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
