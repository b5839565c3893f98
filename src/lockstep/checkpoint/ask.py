"""`lockstep stop`, `grow` and `shrink`: what one may ask of a training that runs.

From anywhere that sees its folder, by a file which rank 0 looks for twice a second: so it works
from a login node, and for ranks on any host.
"""

import fcntl
import time
from collections.abc import Sequence
from pathlib import Path

from lockstep.checkpoint import RANKS, STOP
from lockstep.errors import Parser, UserError

# Seconds in which a training looks for the file: a step may take long, and its beginning too.
PATIENCE = 120.0
LOOK_EVERY = 0.2

# What a training leaves last: one of the pipeline's, and one in a loop of one's own.
RECORDS = ("train.json", "run.json")


def make_parser(word: str) -> Parser:
    """Return the parser of one of the three commands."""
    what = {
        "stop": "Have a training save and stop; the same command goes on.",
        "grow": "Have a training go on with more ranks.",
        "shrink": "Have a training go on with fewer ranks.",
    }[word]
    parser = Parser(prog=f"lockstep {word}", description=what)
    parser.add_argument("results", type=Path, help="the folder of the run")
    if word != "stop":
        parser.add_argument("--ranks", type=int, required=True, help="how many there are to be")
    return parser


def main(word: str, argv: Sequence[str]) -> None:
    """Do what the command line says."""
    parser = make_parser(word)
    given = parser.parse_args(argv)
    if word == "stop":
        stop(given.results)
    elif given.ranks < 1:
        parser.error("--ranks: expected a number from 1")
    else:
        resize(given.results, given.ranks)


def is_held(lock: Path) -> bool:
    """Return whether a process holds a lock, or may: not every file system knows."""
    try:
        with lock.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def stop(results: Path, patience: float = PATIENCE) -> None:
    """Ask the training that writes to `results` to save and stop, and wait until it has heard.

    Raises:
        UserError: nothing trains there, or it does not hear.
    """
    _ask(results, STOP, "", patience)
    print(
        f"{results}: the training has been told, and stops with exit status 75 once it has saved; "
        f"the same command goes on from there"
    )


def resize(results: Path, ranks: int, patience: float = PATIENCE) -> None:
    """Ask the training that writes to `results` for a number of ranks, and wait until it has heard.

    Raises:
        UserError: nothing trains there, or it does not hear.
    """
    _ask(results, RANKS, str(ranks), patience)
    print(
        f"{results}: the training has been told; its log says when there are {ranks} ranks, or why "
        f"not"
    )


def _ask(results: Path, name: str, text: str, patience: float) -> None:
    checkpoints = results / "checkpoints"
    if not checkpoints.is_dir():
        raise UserError(f"{results}: nothing trains here, or not yet; expected the folder of a run")
    if any((results / record).exists() for record in RECORDS):
        raise UserError(f"{results}: this run has been trained to its end")
    if not is_held(checkpoints / "lock"):
        raise UserError(f"{results}: nothing is training here now; the same command goes on")
    file = checkpoints / name
    file.write_text(text, "utf-8")
    until = time.monotonic() + patience
    while file.exists():
        if time.monotonic() > until:
            file.unlink(missing_ok=True)
            raise UserError(
                f"{results}: no training has heard in {patience:g} s; is one running there?"
            )
        time.sleep(LOOK_EVERY)
