"""Checkpoints in files, so that one is whole or not there, and never taken for another run's.

    R/checkpoints/lock                  held by rank 0 of the run that writes to R
    R/checkpoints/stop                  asks it to save and stop
    R/checkpoints/<fingerprint>/        a folder for each configuration, data and code
        about.json                      what the fingerprint was made of
        snapshots/epoch-0028.safetensors
        snapshots/best-0021.safetensors
        step-00000120/                  written aside, synced, renamed
            model.safetensors  optimizer.safetensors  strategy.safetensors
            progress.json               where the run is, and the history so far
            manifest.json               the SHA-256 of all these, and of the snapshots so far

Nothing in here runs when it is read: no pickle. Rank 0 alone reads and writes, by a thread that
writes one thing after another while the training goes on.
"""

import contextlib
import dataclasses
import fcntl
import fnmatch
import json
import os
import queue
import shutil
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

from lockstep import tensors as state
from lockstep.checkpoint import RANKS, STOP
from lockstep.checkpoint.state import Checkpoint, Progress
from lockstep.errors import UserError, first_line, in_one_line, in_words, say
from lockstep.files import (
    as_json,
    check_sha256,
    json_sha256,
    naming,
    sha256,
    sweep,
    sync,
    write_json,
)
from lockstep.optimizer import LazyState
from lockstep.provenance import differences, other_code
from lockstep.testing import faults

TENSORS = ("model.safetensors", "optimizer.safetensors", "strategy.safetensors")
PARTS = (*TENSORS, "progress.json")


def fingerprint(about: dict[str, Any]) -> str:
    """Return a name for all that decides a run's bits: equal only where that is equal."""
    return json_sha256(about)[:16]


class Store:
    """The checkpoints of one configuration of a run, which is locked for this process.

    The lock is on all configurations: their results have one place.

    Args:
        root: the run's folder of checkpoints.
        about: what the fingerprint is made of.
        keep: how many checkpoints stay.

    Raises:
        UserError: a run that is alive holds them.
        OSError: the folder cannot be made or written to.
    """

    def __init__(self, root: Path, about: dict[str, Any], keep: int) -> None:
        self.root, self.folder = root, root / fingerprint(about)
        self.about, self.keep = about, keep
        self._snapshots: dict[str, str] = {}  # their SHA-256
        self._unwritten: dict[str, dict[str, torch.Tensor]] = {}
        with naming(self.folder):
            self._lock = self._hold()
            self._make()
        self.told_to_stop()  # whoever that was, it was about an earlier launch
        self.asked_ranks()
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._error: Exception | None = None
        threading.Thread(target=self._work, name="writer", daemon=True).start()

    def told_to_stop(self) -> bool:
        """Return whether somebody has asked the run to stop, by a file, which is removed."""
        with contextlib.suppress(OSError):
            (self.root / STOP).unlink()
            return True
        return False

    def asked_ranks(self) -> int | None:
        """Return how many ranks somebody asks for, by a file, which is removed; None: nobody."""
        with contextlib.suppress(OSError, ValueError):
            file = self.root / RANKS
            text = file.read_text("utf-8")
            file.unlink()
            return int(text)
        return None

    def _hold(self) -> IO[str]:
        """Lock the run: the system takes the lock back when the process ends."""
        self.root.mkdir(parents=True, exist_ok=True)
        sync(self.root.parent)
        lock = (self.root / "lock").open("a+", encoding="utf-8")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            who = lock.read().strip() or "another process"
            lock.close()
            raise UserError(
                f"{self.root}: {who} is training this very run; wait for it, or end that process"
            ) from None
        except OSError as error:
            say(f"{self.root}: {error.strerror}: cannot be locked; let one run at a time use it")
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        return lock

    def _make(self) -> None:
        """Make the folder, without what a run has left that was killed while it wrote."""
        (self.folder / "snapshots").mkdir(parents=True, exist_ok=True)
        sync(self.root)
        for draft in (*self.folder.glob(".step-*"), *self.folder.glob("snapshots/.*")):
            shutil.rmtree(draft, ignore_errors=True)
        sweep(self.folder / "about.json")
        write_json(self.folder / "about.json", self.about)

    def close(self) -> None:
        """Write what is still to be written, and give the lock back."""
        self.finish()
        self._jobs.put(None)
        self._lock.close()

    def take_over(self) -> None:
        """Go on where another rank has died that has written before.

        What it had written whole has its name.
        """
        self.newest()  # knows the snapshots of its time
        for path in sorted((self.folder / "snapshots").glob("[!.]*")):
            if (name := f"snapshots/{path.name}") not in self._snapshots:
                self._snapshots[name] = sha256(path)

    def others(self) -> list[str]:
        """Return a line for each other configuration of this run that has checkpoints."""
        lines = []
        for path in sorted(self.folder.parent.glob("*/about.json")):
            if path.parent == self.folder or not any(path.parent.glob("step-*")):
                continue
            try:
                why = ", ".join(explain(json.loads(path.read_text("utf-8")), self.about))
            except (OSError, ValueError, AttributeError):
                why = "about.json cannot be read"
            lines.append(f"{path.parent}: checkpoints of another run, not used: {why}")
        return lines

    # Reading.

    def newest(self) -> Checkpoint | None:
        """Return the last checkpoint that is whole; what is damaged is reported and passed over.

        Its tensors are read when they are asked for, each time.
        """
        for folder in reversed(self._steps()):
            try:
                return self._read(folder)
            except (OSError, ValueError, KeyError, TypeError, AttributeError, UserError) as error:
                say(f"{folder}: damaged, and not used: {first_line(error)}")
        return None

    def _steps(self) -> list[Path]:
        """Return the folders of checkpoints in their order: a number may have more digits."""
        found = self.folder.glob("step-*")
        return sorted(found, key=lambda folder: (len(folder.name), folder.name))

    def _read(self, folder: Path) -> Checkpoint:
        manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
        files = {f"{folder.name}/{name}" for name in PARTS}
        snapshots = {name: digest for name, digest in manifest.items() if name not in files}
        if not files <= manifest.keys():
            raise ValueError(f"manifest.json lists no {min(files - manifest.keys())}")
        for name, digest in manifest.items():
            if name in snapshots and Path(name).parent != Path("snapshots"):
                raise ValueError(f"manifest.json lists {name}, which is no part of it")
            if sha256(self.folder / name) != digest:
                raise ValueError(f"{name} is not what manifest.json says")
        model, optimizer, strategy = (state.Stored(folder / name) for name in TENSORS)
        progress = Progress(**json.loads((folder / "progress.json").read_text("utf-8")))
        self._snapshots = snapshots
        return Checkpoint(progress, model, _nested(optimizer), strategy)

    # Writing.

    def put(self, checkpoint: Checkpoint) -> None:
        """Have a checkpoint written.

        If it cannot be, that is said, and the training goes on: the disk may have room next time.
        """
        self._jobs.put(lambda: self._write(checkpoint))

    def put_snapshot(self, name: str, weights: dict[str, torch.Tensor]) -> None:
        """Have an epoch's weights written, or again with the next checkpoint if they cannot be."""
        self._unwritten[name] = weights
        self._jobs.put(self._write_snapshots)

    def keep_snapshots(self, names: set[str]) -> None:
        """Keep no snapshots but these. The files of others go when no checkpoint lists them."""
        # Those that there are now: what is put from here on, before this is done, is to stay.
        known = [*self._unwritten]
        known += [Path(name).name for name in [*self._snapshots]]
        self._jobs.put(lambda: self._forget_snapshots({*known} - names))

    def snapshot(self, name: str) -> dict[str, torch.Tensor]:
        """Return the weights of a snapshot that is written.

        Raises:
            UserError: it is not there, or is not as it was written.
        """
        path = self.folder / "snapshots" / name
        if (digest := self._snapshots.get(f"snapshots/{name}")) is None:
            raise UserError(f"{path}: no checkpoint lists it; remove {self.root} and train again")
        check_sha256(path, digest, self.folder, f"remove {self.root} and train again")
        return state.read(path)

    @property
    def busy(self) -> bool:
        """Whether something is still to be written."""
        return self._jobs.unfinished_tasks > 0

    def finish(self) -> None:
        """Wait until nothing is to be written any more, be it written or not."""
        self._jobs.join()

    def wait(self) -> None:
        """Wait until all is written.

        Raises:
            OSError, UserError: the last thing could not be.
        """
        self.finish()
        if self._error is not None:
            raise self._error

    def link_snapshots(self, target: Path, pattern: str = "*") -> None:
        """Put the snapshots into the folder `target` as well, without another copy of them.

        Args:
            target: the folder.
            pattern: of the names of those that are meant.
        """
        target.mkdir(parents=True, exist_ok=True)
        for name in fnmatch.filter(self._snapshots, f"snapshots/{pattern}"):
            path = self.folder / name
            try:
                (target / path.name).hardlink_to(path)
            except OSError:  # not every file system has links
                shutil.copyfile(path, target / path.name)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                with naming(self.folder):
                    job()
                self._error = None
            except Exception as error:
                self._error = error
                say(
                    f"checkpoint: {in_one_line(error)}; the training goes on, and it is tried again"
                )
            del job
            self._jobs.task_done()

    def _write_snapshots(self) -> None:
        for name, weights in list(self._unwritten.items()):
            path = self.folder / "snapshots" / name
            faults.point("snapshot", len(self._snapshots))
            state.save(weights, path)
            self._snapshots[f"snapshots/{name}"] = sha256(path)
            del self._unwritten[name]

    def _forget_snapshots(self, names: set[str]) -> None:
        for name in names:
            self._unwritten.pop(name, None)
            self._snapshots.pop(f"snapshots/{name}", None)

    def _remove_forgotten(self, folders: list[Path]) -> None:
        """Remove the files of snapshots that neither the run keeps nor a checkpoint lists."""
        listed = {*self._snapshots}
        for folder in folders:
            try:
                listed |= json.loads((folder / "manifest.json").read_text("utf-8")).keys()
            except (OSError, ValueError, AttributeError):
                return  # a damaged one: nobody knows what it lists
        for path in (self.folder / "snapshots").glob("*.safetensors"):
            if f"snapshots/{path.name}" not in listed:
                path.unlink()

    def _write(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, and then drop what is older than those that are kept, and later ones.

        Raises:
            OSError, UserError: it cannot be written; those that are there stay.
        """
        if not self._is_mine():
            lock = self._hold()
            self._lock.close()
            self._lock = lock
        if not (self.folder / "about.json").exists():
            say(f"{self.folder}: was removed while the run used it; it is made again")
            self._make()
        self._write_snapshots()
        step = checkpoint.progress.step
        final = self.folder / f"step-{step:08}"
        draft = self.folder / f".{final.name}"
        try:
            draft.mkdir()
            tensors = checkpoint.model, _flat(checkpoint.optimizer), checkpoint.strategy
            for name, values in zip(TENSORS, tensors, strict=True):
                state.write(values, draft / name, final / name)
            # Not by `write_json`: all that is in the draft is synced together.
            progress = as_json(dataclasses.asdict(checkpoint.progress))
            (draft / "progress.json").write_text(progress, encoding="utf-8")
            manifest = {f"{final.name}/{name}": sha256(draft / name) for name in PARTS}
            text = as_json(manifest | self._snapshots)
            (draft / "manifest.json").write_text(text, encoding="utf-8")
            faults.point("written", step)
            for path in (*draft.iterdir(), draft):
                sync(path)
            faults.point("synced", step)
            if final.exists():  # a damaged one of the same step
                self._drop(final)
            draft.rename(final)
            faults.point("renamed", step)
            sync(self.folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        # Later ones are damaged, or the run would not be here: they must not count.
        found = self._steps()
        place = found.index(final) + 1
        for folder in (*found[: max(0, place - self.keep)], *found[place:]):
            self._drop(folder)
        self._remove_forgotten(found[max(0, place - self.keep) : place])

    def _is_mine(self) -> bool:
        """Return whether the lock is still the one that was taken."""
        try:
            return (self.root / "lock").stat().st_ino == os.fstat(self._lock.fileno()).st_ino
        except FileNotFoundError:
            return False

    def _drop(self, folder: Path) -> None:
        # Under another name first: what is left if this is cut short is not taken for damaged.
        doomed = folder.with_name(f".{folder.name}-old")
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def explain(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return in words how what two fingerprints are made of differs."""
    found, old, new = [], then.get("code"), now.get("code")
    if isinstance(old, dict) and isinstance(new, dict):
        found += [f"other code: {names}"] if (names := other_code(old, new)) else []
    elif old != new:  # it was one hash once
        found.append("other code")
    differ = differences(then, now).items()
    return found + [
        f"{name} was {in_words(old)}, is {in_words(new)}" for name, (old, new) in differ
    ]


def _flat(optimizer: LazyState) -> dict[str, torch.Tensor]:
    return {f"{key}/{name}": v for name, kept in optimizer.items() for key, v in kept.items()}


def _nested(flat: state.Stored) -> dict[str, state.Stored]:
    names: dict[str, dict[str, str]] = {}
    for name in flat:
        key, _, parameter = name.partition("/")
        names.setdefault(parameter, {})[key] = name
    return {parameter: flat.some(some) for parameter, some in names.items()}
