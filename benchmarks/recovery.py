"""How many seconds does a kill -9 of one rank cost? Lockstep, its resume, and torchrun with DDP.

    python -m benchmarks.recovery [ROUNDS]

Trains a small CNN on made-up data, one thread per rank; all save after every EVERY steps, and rank
1 is killed before step KILL, once. Each round (5) has every way without the kill and with it, in
turns. Prints medians, the smallest and the largest; the times within a run are rank 0's.
"""

import hashlib
import itertools
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

STEPS, EVERY, KILL = 240, 40, 140  # half-way from one that is saved to the next
SAMPLES, BATCH, SHARDS = 1536, 64, 4
BATCHES = SAMPLES // BATCH
RANKS = (2, 4)
WAYS = {
    "survive": "Lockstep, `--with-ft ulfm`",
    "resume": "Lockstep, launched again",
    "ddp": "DDP, `torchrun --max-restarts=3`",
}
COLUMNS = {
    "whole": "s without a kill",
    "lost": "s lost",
    "next": "s to the next new step",
    "new": "of which: new processes",
    "start": "their start",
    "again": "steps again",
    "repeated": "steps done twice",
    "launches": "launches",
}
# Without the first, workers that torchrun starts again may find the addresses of the dead in the
# store, and fail (as in pytorch#135712); without the second, DDP would load a part of Lockstep.
PLAIN = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}


def cnn() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(32 * 7 * 7, 10)),
    )


def data() -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(SAMPLES, 1, 28, 28, generator=draw)
    return x, torch.randint(10, (SAMPLES,), generator=draw)


def by_lockstep(folder: Path) -> None:
    import lockstep  # here, since a rank of DDP's pays for its own imports alone

    with lockstep.init(shards=SHARDS, seed=1) as session:
        x, y = data()
        model = session.build(cnn)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        every = f"{EVERY} steps"
        run = session.run(model, optimizer, folder, checkpoint_every=every, configuration={})
        for step in run.steps(SAMPLES, BATCH, epochs=STEPS // BATCHES):
            be_killed(folder, session.rank, step.number)
            for shard in step:
                loss = F.cross_entropy(model(x[shard.ids]), y[shard.ids], reduction="sum")
                shard.backward(loss, items=len(shard.ids))
            optimizer.step()
            mark(folder, session.rank, f"step {step.number}")
        finish(folder, session.rank, model)


def by_ddp(folder: Path) -> None:
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel
    from torch.utils.data import DistributedSampler

    torch.use_deterministic_algorithms(True)
    dist.init_process_group("gloo")
    rank, mine, saved = dist.get_rank(), BATCH // dist.get_world_size(), folder / "checkpoint.pt"
    torch.manual_seed(1)
    x, y = data()
    model = cnn()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    done = 0
    if saved.exists():
        state = torch.load(saved)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["done"]
    wrapped = DistributedDataParallel(model)
    sampler = DistributedSampler(range(SAMPLES), seed=1)
    for step in range(done, STEPS):
        be_killed(folder, rank, step)
        epoch, place = divmod(step, BATCHES)
        if place == 0 or step == done:
            sampler.set_epoch(epoch)
            order = torch.tensor([*sampler])
        ids = order[place * mine : (place + 1) * mine]
        optimizer.zero_grad()
        F.cross_entropy(wrapped(x[ids]), y[ids]).backward()
        optimizer.step()
        mark(folder, rank, f"step {step}")
        if (step + 1) % EVERY == 0 and rank == 0:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state | {"done": step + 1}, saved.with_suffix(".new"))
            saved.with_suffix(".new").replace(saved)
    finish(folder, rank, model)
    dist.destroy_process_group()


def now() -> float:
    """Return the seconds since the kernel started, as it notes the start of a process."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def mark(folder: Path, rank: int, what: str, when: float | None = None) -> None:
    """Write down that rank 0 is here."""
    if rank == 0:
        with (folder / "marks").open("a") as file:
            file.write(f"{now() if when is None else when} {what}\n")


def be_killed(folder: Path, rank: int, step: int) -> None:
    """Be killed, if this is where: once, and not when it is done again."""
    killed = folder / "killed"
    if step == KILL and rank == 1 and killed.exists() and not killed.read_text():
        killed.write_text(str(now()))
        os.kill(os.getpid(), signal.SIGKILL)


def finish(folder: Path, rank: int, model: nn.Module) -> None:
    """Write down what came of it, and when this process began."""
    found = hashlib.sha256()
    for name, value in model.state_dict().items():
        found.update(name.encode() + value.numpy().tobytes())
    # The 22nd field (see proc(5)); the second one may have blanks.
    ticks = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    mark(folder, rank, "began", int(ticks) / os.sysconf("SC_CLK_TCK"))
    mark(folder, rank, f"sha256={found.hexdigest()}")


def run(way: str, ranks: int, folder: Path, kills: bool) -> tuple[str, dict[str, float]]:
    """Run to the end, launched again if need be; return the model's hash, and figures."""
    from tests.conftest import REPOSITORY, environment, mpirun  # pytest is none of a rank's imports
    from tests.mpi.survivors import surviving

    folder.mkdir()
    if kills:
        (folder / "killed").touch()
    env = environment() | {"OMP_NUM_THREADS": "1"} | (PLAIN if way == "ddp" else {})
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += [f"--nproc-per-node={ranks}", "--max-restarts=3"]
    words = {"survive": surviving(ranks), "resume": mpirun(ranks), "ddp": torchrun}[way]
    words = [*words, "-m", "benchmarks.recovery", way, str(folder)]
    started, launches = now(), 1
    with (folder / "log").open("w") as log:
        while subprocess.run(words, cwd=REPOSITORY, env=env, stdout=log, stderr=log).returncode:
            launches += 1
            assert launches <= 3, (folder / "log").read_text()
    figures = {"whole": now() - started, "launches": launches}
    marks: dict[str, list[float]] = {}
    for line in (folder / "marks").read_text().splitlines():
        when, what = line.split(" ", 1)
        marks.setdefault(what, []).append(float(when))
    (sha256,) = (what for what in marks if what.startswith("sha256"))
    if kills:
        killed, began = float((folder / "killed").read_text()), marks["began"][-1]
        steps = [times for what, times in marks.items() if what.startswith("step ")]
        figures["repeated"] = sum(len(times) - 1 for times in steps)
        figures["next"] = marks[f"step {KILL}"][0] - killed
        if began > killed:
            first = min(when for times in steps for when in times if when > began)
            figures |= {"new": began - killed, "start": first - began}
            figures["again"] = marks[f"step {KILL}"][0] - first
    return sha256, figures


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    load = os.getloadavg()[0]
    found: dict[tuple[int, str], list[dict[str, float]]] = {}
    hashes: dict[tuple[int, str], list[tuple[str, str]]] = {}
    for _, ranks, way in itertools.product(range(rounds), RANKS, WAYS):
        with tempfile.TemporaryDirectory() as folder:
            calm, without = run(way, ranks, Path(folder, "calm"), False)
            hit, figures = run(way, ranks, Path(folder, "hit"), True)
        lost = {"lost": figures["whole"] - without["whole"], "whole": without["whole"]}
        found.setdefault((ranks, way), []).append(figures | lost)
        hashes.setdefault((ranks, way), []).append((calm, hit))
    mpi = subprocess.run(["mpirun", "--version"], capture_output=True, text=True, check=True)
    print(f"{rounds} rounds of {STEPS} steps, saved every {EVERY}, a kill before step {KILL + 1};")
    print(f"torch {torch.__version__}, {mpi.stdout.splitlines()[0]}, {platform.python_version()};")
    print(f"{os.cpu_count()} cores, load {load:.1f} before, {os.getloadavg()[0]:.1f} after\n")
    print(f"| ranks | | {' | '.join(COLUMNS.values())} | bits of the first run |")
    print("|---" * (len(COLUMNS) + 3) + "|")
    for (ranks, way), rows in found.items():
        cells = [spread([row[name] for row in rows if name in row]) for name in COLUMNS]
        calm, hit = zip(*hashes[ranks, way], strict=True)
        cells.append(f"{calm.count(calm[0])} without, {hit.count(calm[0])} with a kill")
        print(f"| {ranks} | {WAYS[way]} | {' | '.join(cells)} |")


def spread(values: list[float]) -> str:
    """Return the median, and the smallest and the largest where they are others."""
    if not values:
        return ""
    least, middle, most = (f"{f(values):.2g}" for f in (min, statistics.median, max))
    return middle if least == most else f"{middle} ({least} to {most})"


if __name__ == "__main__":
    if len(sys.argv) == 3:
        (by_ddp if sys.argv[1] == "ddp" else by_lockstep)(Path(sys.argv[2]))
    else:
        main()
