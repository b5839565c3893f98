"""A workflow while it runs: one view of all stages and trainings that stays in its place on a
terminal; elsewhere a line for each job and each epoch."""

import contextlib
import json
import re
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lockstep.files import DAMAGE
from lockstep.pipeline.seen import Lines, Seen, look, saved
from lockstep.progress import Told, duration

if TYPE_CHECKING:
    from rich.console import Group


# Seconds between two looks at what trainings have told.
EVERY = 1.0
# Lines of a job's log that are shown where none says what went wrong.
MOST_LINES = 20
# What goes wrong is said in lines that begin so.
SAYS = re.compile(r"lockstep \w+(, rank \d+)?: ")
# Stages whose rules have other names.
NAMES = {"draw": "figures", "scale": "figures"}
# Rules that only ask for others.
TARGETS = ("all", "default", "everything", "figures", "total")
# Rows of a terminal that hold no training.
BESIDE = 5


@dataclass(frozen=True)
class Job:
    """A job that runs."""

    stage: str
    name: str
    started: float
    outputs: tuple[Path, ...] = ()


class Overview:
    """Shows jobs as it is told of them; by one thread, and looks at trainings in another."""

    def __init__(self) -> None:
        self._planned: Counter[str] = Counter()
        self._done: Counter[str] = Counter()
        self._seconds: dict[str, float] = {}
        self._jobs: dict[int, Job] = {}
        self._runs: dict[str, Path] = {}
        self._failed: dict[int, Job] = {}
        self._before: dict[str, float | None] = {}
        self._interrupted: list[str] | None = None
        self._lines = Lines()
        self._lock = threading.RLock()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._began = 0.0

    def plan(self, jobs: Mapping[str, int]) -> None:
        """Take how many jobs each rule has, in the order in which they can run."""
        with self._lock:
            self._planned.clear()
            for rule, count in jobs.items():
                if rule not in TARGETS and not any(one.startswith(f"{rule}_") for one in jobs):
                    self._planned[_stage(rule)] += count

    def start(self, number: int, rule: str, name: str, outputs: Iterable[Path] = ()) -> None:
        """Take that a job was started.

        Args:
            number: the job's.
            rule: its rule.
            name: what it is of, where its rule has several.
            outputs: the files that it is to make.
        """
        with self._lock:
            self._failed.pop(number, None)
            job = Job(_stage(rule), name, time.monotonic(), tuple(outputs))
            self._jobs[number] = job
            if rule.endswith("train_run"):
                folder = self._runs[name] = job.outputs[0].parent
                earlier = look(name, folder)  # what it did in an earlier launch
                self._before[name] = earlier.told.now.get("began")
                self._lines.skip(earlier)
            if self._thread is None and not self._over.is_set():
                self._began = time.monotonic()
                self._thread = threading.Thread(target=self._show, daemon=True)
                self._thread.start()

    def finish(self, number: int) -> None:
        """Take that a job is done."""
        with self._lock:
            if job := self._jobs.pop(number, None):
                self._done[job.stage] += 1
                seconds = time.monotonic() - job.started
                if job.stage == "prepare" and (skipped := _skipped(job.outputs)):
                    self.print(skipped)
                self._seconds[job.stage] = self._seconds.get(job.stage, 0.0) + seconds
                done, planned = self._done.total(), self._planned.total()
                if not _is_terminal():
                    self._say_epochs()
                    what = " ".join(filter(None, (job.stage, job.name)))
                    self.print(f"{what}: done in {duration(seconds)} ({done} of {planned} jobs)")

    def fail(self, number: int, rule: str, logs: list[Path]) -> None:
        """Take that a job failed, which may be told several times."""
        with self._lock:
            if number in self._failed:
                return
            job = self._jobs.pop(number, None) or Job(_stage(rule), "", 0.0)
            self._failed[number] = job
            if self._interrupted is not None:  # that is what went wrong
                return
            what = " ".join(filter(None, (job.stage, job.name)))
            if not _is_terminal():
                self._say_epochs()
            self.print(f"{what}: failed; {', '.join(map(str, logs))} has all of it")
            for line in _reason(logs):
                self.print(line)

    def interrupt(self) -> None:
        """Take that a person ends the workflow, and the jobs with it."""
        with self._lock:
            if self._interrupted is None:
                running = (job.name for job in self._jobs.values() if job.stage == "train")
                self._interrupted = [*running]

    def print(self, text: str) -> None:
        """Print lines that stay."""
        print(text, file=sys.stderr, flush=True)  # above a view, which redirects it

    def end(self) -> None:
        """Show how it ended, and no more."""
        self._over.set()
        if self._thread and self._thread is not threading.current_thread():
            self._thread.join()
            self._thread = None
            self._say_what_is_saved()

    def _say_what_is_saved(self) -> None:
        """Print where trainings that were interrupted will go on: what their files say."""
        seen = [look(name, self._runs[name]) for name in self._interrupted or []]
        seen = [one for one in seen if self._has_begun(one) and one.state != "done"]
        if not seen:
            return
        self.print("Interrupted. The same command goes on:")
        for one in seen:
            step, of = saved(one.folder), one.told.now.get("steps")
            where = (
                f"after step {step} of {of}, which is saved"
                if step
                else "from its beginning: nothing was saved yet"
            )
            self.print(f"  {one.name}  {where}")

    def _has_begun(self, one: Seen) -> bool:
        """Return whether a training has told anything since its job was started."""
        return one.told.now.get("began") != self._before[one.name]

    def _show(self) -> None:
        if not _is_terminal():
            while not self._over.wait(EVERY):
                self._say_epochs()
            return
        from rich.console import Console
        from rich.live import Live

        console = Console(stderr=True)
        with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
            while True:
                is_over = self._over.wait(EVERY)
                for one in self._look():
                    for line in self._lines.resumed(one):
                        self.print(line)
                live.update(self._view(console.width, console.height, is_over), refresh=True)
                if is_over:
                    return

    def _say_epochs(self) -> None:
        """Print a line for each epoch that is over since this was called last."""
        with self._lock:
            for one in self._look():
                for line in self._lines.new(one):
                    self.print(line)

    def _look(self) -> list[Seen]:
        with self._lock:
            runs = dict(self._runs)
            failed = {job.name for job in self._failed.values() if job.stage == "train"}
            running = {job.name for job in self._jobs.values() if job.stage == "train"}
        found = []
        for one in (look(name, folder) for name, folder in runs.items()):
            if one.name in failed:
                one = replace(one, state="ended")
            elif one.name in running and not self._has_begun(one):
                one = replace(one, state="starting", told=Told())  # that was an earlier launch
            found.append(one)
        return found

    def _view(self, width: int, height: int, is_over: bool) -> "Group":
        """Return what a terminal shows: stages in a line, then a row for each training."""
        from rich.console import Group
        from rich.text import Text

        from lockstep.pipeline.live import fitting, rows

        seen = self._look()
        shown, more = fitting(seen, height - BESIDE)
        with self._lock:
            parts = []
            running = {job.stage for job in self._jobs.values()}
            failed = {job.stage for job in self._failed.values()}
            for stage, planned in self._planned.items():
                done = self._done[stage]
                if stage in failed:
                    parts.append((f"✖ {stage} {done}/{planned}", "red"))
                elif done == planned:
                    parts.append((f"✔ {stage} {duration(self._seconds[stage])}", "green"))
                elif done or stage in running:
                    count = f" {done}/{planned}" if planned > 1 else ""
                    parts.append((f"▸ {stage}{count}", "bold"))
                else:
                    parts.append((stage, "dim"))
            waiting = self._planned["train"] - len(seen)
            spent = time.monotonic() - self._began
        head = Text("   ").join([Text(text, style) for text, style in parts])
        foot = [f"{more} more trainings"] if more else []
        foot += [f"{waiting} wait"] if waiting > 0 and seen and not is_over else []
        foot.append(f"{duration(spent)} so far" if not is_over else f"{duration(spent)} in all")
        return Group(head, rows(shown, width), Text(" · ".join(foot), "dim"))


def _is_terminal() -> bool:
    return sys.stderr.isatty()


def _stage(rule: str) -> str:
    """Return the stage that a rule is of: what it is called by, whatever a workflow that uses this
    one puts before it."""
    words = rule.removeprefix("lockstep_").split("_")
    return NAMES.get(words[0], words[0])


def _skipped(outputs: Iterable[Path]) -> str:
    """Return what is to be said of files that `prepare` has left out, if there are any."""
    for path in outputs:
        if path.name == "manifest.json":
            with contextlib.suppress(*DAMAGE):
                record = json.loads(path.read_text("utf-8"))
                if count := len(record.get("skipped", {})):
                    files = "1 bad file" if count == 1 else f"{count} bad files"
                    return f'prepare: skipped {files}; {path} lists what, under "skipped"'
    return ""


def _reason(logs: list[Path]) -> list[str]:
    """Return what logs say went wrong, or their ends."""
    lines: deque[str] = deque(maxlen=MOST_LINES)
    said: dict[str, None] = {}
    for log in logs:
        with contextlib.suppress(OSError), log.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                lines.append(line.rstrip())
                if SAYS.match(line):
                    said[line.rstrip()] = None
    return [f"  {line}" for line in ([*said][-3:] or lines)]
