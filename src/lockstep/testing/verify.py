"""`lockstep verify`: run a script on several numbers of ranks, and name what first differs.

    lockstep verify script.py [its arguments ...] --ranks 1,2,3 --steps 10

The script is run once for each number of ranks, in this folder, until so many steps are done, and
each rank keeps a trace (`lockstep.testing.trace`). What the script would leave in its run's folder
goes elsewhere, and is removed; a run that is under way there is left alone. Ends with status 0 if
all bits are the same, 1 if not, and 2 if the script cannot be verified.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from lockstep.distributed import launcher
from lockstep.errors import Parser, UserError, say
from lockstep.files import sha256

# A place in a run: the run, the step, the pass, and within that what comes first.
Place = tuple[int, int, float, int, int]
# A line of a trace, of each rank that has it, by (number of ranks, rank).
Lines = dict[tuple[int, int], dict[str, Any]]

LAST = float("inf")  # after all passes of a step

CAUSES = {
    "samples": "the batch, the samples or the seed depend on the number of ranks",
    "input": "what the loop makes of shard.ids differs: look for data that are read by rank, a "
    "DataLoader or an iterator that is asked for the next batch, augmentation by other random "
    "numbers than torch's, files that are not the same",
    "output": "the module computes other things from the same: look for what it keeps from one "
    "call to the next in an attribute that is no buffer, for other random numbers than torch's, "
    "for the clock, for weights that are changed in the loop",
    "loss": "the model's outputs are the same: look for a loss that knows of the rank: a mean, "
    "a weight, a number of ranks as a factor",
    "random": "the shard drew more or fewer of torch's random numbers, or seeded them",
    "gradient": "the loss is the same: look for gradients that are changed in the loop, hooks, "
    "and functions whose backward pass keeps something or is not deterministic",
    "metric": "the shards' sums are the same and the totals are not: a fault of lockstep's",
    "sum": "the shards' gradients are the same and their mean is not: a fault of lockstep's, or of "
    "the backend; try the other one",
    "changed": "the mean gradient was the same: look for gradients that are changed on some ranks "
    "alone between the loop over shards and optimizer.step()",
    "setting": "look for a learning rate, or a scheduler, that depends on the number of ranks",
    "optimizer": "the gradients are the same: look for what makes the optimizer's step depend on "
    "the rank",
    "weight": "the gradients are the same: look for weights that are set outside of the optimizer "
    "on some ranks alone, an average of weights, a clipping of them",
    "buffer": "look for buffers that are set outside of the loop over shards",
    "beginning": "the model is not made of the seed alone: make it by session.build, and load "
    "weights on all ranks",
}
_WHAT = {
    "samples": "the choice of samples",
    "input": "the input of {}",
    "output": "the output of {}",
    "loss": "the sum of {}",
    "random": "the state of torch's random numbers",
    "gradient": "the gradient of {}",
    "metric": "the mean of {}",
    "setting": "what is set in {}",
    "optimizer": "the optimizer's {}",
    "weight": "the weight {}",
    "buffer": "the buffer {}",
}
# A gradient that differs has other causes later on.
_CAUSED_AT = {("reduction", "gradient"): "sum", ("step", "gradient"): "changed"}


def main(word: str, argv: Sequence[str]) -> NoReturn:
    """Do what the command line says, and exit."""
    given = _arguments(make_parser(word), argv)
    try:
        sys.exit(verify([given.script, *given.arguments], given.ranks, given.steps, given.backend))
    except UserError as error:
        say(f"verify: {error}")
        sys.exit(2)


def make_parser(_: str) -> Parser:
    """Return the command's parser."""
    parser = Parser(
        prog="lockstep verify",
        usage="lockstep verify script.py [its arguments ...] [--ranks 1,2,3] [--steps 10] "
        "[--backend auto]",
        description="Run a script on several numbers of ranks, and name what first differs.",
        epilog="What comes after -- is the script's.",
        allow_abbrev=False,
    )
    parser.add_argument("script", help="a script that trains by lockstep")
    parser.add_argument("--ranks", type=_numbers, default=[1, 2, 3], help="numbers of ranks")
    parser.add_argument("--steps", type=int, default=10, help="how many steps, at most")
    parser.add_argument(
        "--backend",
        choices=["auto", "mpi4py", "gloo"],
        default="auto",
        help="mpi4py launches by mpirun, gloo by torchrun; auto takes mpirun where there is one",
    )
    return parser


def _arguments(parser: Parser, argv: Sequence[str]) -> argparse.Namespace:
    end = argv.index("--") if "--" in argv else len(argv)
    given, rest = parser.parse_known_args(argv[:end])
    given.arguments = [*rest, *argv[end + 1 :]]
    if given.steps < 1:
        parser.error("--steps: expected a number from 1")
    return given


def _numbers(text: str) -> list[int]:
    numbers = sorted({int(word) for word in text.split(",")})
    if len(numbers) < 2 or numbers[0] < 1:
        raise argparse.ArgumentTypeError("expected two numbers of ranks at least, such as 1,2,3")
    return numbers


def verify(command: list[str], ranks: list[int], steps: int, backend: str = "auto") -> int:
    """Run a script on each number of ranks, and say what came of it.

    Args:
        command: the script and its arguments.
        ranks: the numbers of ranks.
        steps: how many steps are compared at most.
        backend: `mpi4py`, `gloo` or `auto`.

    Returns:
        0: the same bits; 1: not.

    Raises:
        UserError: the script fails, does not use the library, or cannot be launched.
    """
    if not Path(command[0]).is_file():
        raise UserError(f"{command[0]}: no such file; expected a Python script")
    failures: dict[int, str] = {}
    with tempfile.TemporaryDirectory(prefix="lockstep-") as work:
        folders = {count: Path(work, str(count)) for count in ranks}
        for count, folder in folders.items():
            folder.mkdir()
            started = time.monotonic()
            if failed := _run(command, count, folder, steps, backend):
                failures[count] = f"{_ranks(count)}: {failed}"
            if ranks[0] in failures:
                raise UserError(failures[count])  # there is nothing to compare others with
            say(f"verify: {_ranks(count)}: {time.monotonic() - started:.0f} s")
        same, text = compare(folders, failures)
    if same and failures:
        raise UserError("; ".join(failures.values()))
    print(text)
    for failed in failures.values():
        say(f"verify: {failed}")
    return 0 if same else 1


def compare(folders: Mapping[int, Path], failures: Container[int] = ()) -> tuple[bool, str]:
    """Compare traces.

    Args:
        folders: the folder of the trace of each number of ranks.
        failures: the numbers of ranks on which the script failed, whose traces may be shorter.

    Returns:
        Whether all bits are the same, and for a person: how many, or what first differs.

    Raises:
        UserError: there is nothing to compare.
    """
    places: dict[Place, Lines] = {}
    for count, folder in folders.items():
        for rank in range(count):
            for line in _lines(folder / f"rank-{rank}.jsonl"):
                places.setdefault(_place(line), {})[count, rank] = line
    for place, lines in sorted(places.items()):
        if difference := _difference(lines):
            return False, difference
        here = {count for count, _ in lines}
        if away := [count for count in folders if count not in here and count not in failures]:
            return False, (
                f"{_words(place)}: {_ranks(away[0])} did not come to it, and {_ranks(min(here))} "
                f"did\nlook for a number of steps, epochs or passes that depends on the ranks"
            )
    done = sum(place[2] == LAST for place in places)
    models = sorted(next(iter(folders.values())).glob("run-*/model.safetensors"))
    if not done or not models:
        raise UserError(
            "no step of lockstep's was done; expected a script that trains by session.run"
        )
    counts = ", ".join(map(str, folders))
    return True, f"the same bits: {counts} ranks, {done} steps, sha256 {sha256(models[-1])}"


def _run(command: list[str], ranks: int, folder: Path, steps: int, backend: str) -> str:
    """Run a script on so many ranks; return why it failed, or nothing."""
    done = subprocess.run(
        [*_launcher(ranks, backend), *command],
        env=os.environ | {"LOCKSTEP_TRACE": f"{folder}:{steps}"},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if not done.returncode:
        return ""
    said = [line for line in done.stderr.splitlines() if line.strip()]
    name = Path(command[0]).name
    own = [line for line in said if line.startswith(f"{name},")]
    errors = [line for line in said if line.partition(":")[0].endswith(("Error", "Exception"))]
    first = next(iter([*own, *errors[-1:], *said[-1:]]), "it says nothing")
    return f"the script failed with status {done.returncode}: {first}"


def _launcher(ranks: int, backend: str) -> list[str]:
    """Return the words that start Python on so many ranks of this machine.

    Raises:
        UserError: mpirun is asked for, and there is none.
    """
    if ranks == 1:
        return [sys.executable]
    mpirun = shutil.which("mpirun") if find_spec("mpi4py") else None
    if backend == "mpi4py" and not mpirun:
        raise UserError("backend: mpi4py needs mpirun and the package mpi4py; or take gloo")
    if backend == "gloo" or not mpirun:
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        return [sys.executable, *torchrun]
    version = subprocess.run([mpirun, "--version"], capture_output=True, text=True, check=False)
    if "Open MPI" in version.stdout:  # which counts cores, and refuses root
        return launcher.start([mpirun, *launcher.LOCAL[1:]], ranks, python=sys.executable)
    return [mpirun, "-n", str(ranks), sys.executable, "-m", "mpi4py"]


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a trace that are whole: a rank may have been killed in one."""
    for text in path.read_text().splitlines(keepends=True) if path.exists() else ():
        if text.endswith("\n"):
            yield json.loads(text)


def _place(line: dict[str, Any]) -> Place:
    number, order = {
        "beginning": (-1.0, 0),
        "shard": (line.get("pass", 0), 0),
        "reduction": (line.get("pass", 0), 1),
        "step": (LAST, 0),
    }[line["kind"]]
    return line["run"], line["step"], number, order, line.get("shard", 0)


def _words(place: Place) -> str:
    """Return a place for a person."""
    run, step, number, order, shard = place
    words = [f"run {run}"] if run > 1 else []
    words += [f"step {step}"] if step else ["before the first step"]
    if number == LAST:
        words.append("after optimizer.step()")
    elif step:
        words += [f"pass {int(number) + 1}"] if number else []
        words.append("after the reduction" if order else f"shard {shard}")
    return ", ".join(words)


def _difference(lines: Lines) -> str:
    """Return what first differs between the ranks that were at a place, and why that may be."""
    (one, first), *others = lines.items()
    for other, line in others:
        for a, b in zip(first["entries"], line["entries"], strict=False):
            if a != b:
                return _explain(first, one, a, other, b)
        if len(first["entries"]) != len(line["entries"]):
            longer = max(first["entries"], line["entries"], key=len)
            extra = longer[min(len(first["entries"]), len(line["entries"]))]
            return _explain(first, one, extra, other, extra)
    return ""


def _explain(
    line: dict[str, Any], one: tuple[int, int], a: list[str], other: tuple[int, int], b: list[str]
) -> str:
    kind, name, _ = a
    what = _WHAT[kind].format(name)
    if a[:2] != b[:2]:
        what += f" on the one and {b[0]} {b[1]} on the other"
    where = f"{_words(_place(line))}: {what} differs between {_rank(*one)} and {_rank(*other)}"
    at = line["kind"]
    cause = CAUSES[_CAUSED_AT.get((at, kind), "beginning" if at == "beginning" else kind)]
    drew = " and ".join(line.get("drew", ()))
    more = f"\n{drew}'s random numbers were drawn in this shard" if drew else ""
    return f"{where}\n{cause}{more}"


def _rank(count: int, rank: int) -> str:
    return _ranks(count) if count == 1 else f"rank {rank} of {count}"


def _ranks(count: int) -> str:
    return f"{count} rank" + "s" * (count > 1)
