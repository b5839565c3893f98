"""page: one HTML file that answers what a person asks of some runs, finished or not.

It reads what other stages wrote, whatever of it is there, loads no torch, and asks no network.
Snakemake loads this module in every job, so what writes the page is loaded when it is written.
"""

import threading
from collections.abc import Iterable
from pathlib import Path

from lockstep import progress
from lockstep.errors import first_line, say
from lockstep.files import json_sha256, sha256, sweep

NAME = "index.html"
TEMPLATES = Path(__file__).parent / "templates"
# Seconds between two pages while something is trained, and until a page loads the next one.
EVERY = 10.0


class Live:
    """The page of runs that go on, written again and again in a thread, from `start` to `stop`."""

    def __init__(self, results: Path, names: Iterable[str]) -> None:
        self.results, self.names = results, [*names]
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._write_on, daemon=True)

    def start(self) -> None:
        """Begin."""
        sweep(self.results / NAME)  # nobody else writes it now
        self.thread.start()

    def stop(self) -> None:
        """Write it for the last time, such that it no longer loads itself again."""
        if self.thread.ident:
            self.over.set()
            self.thread.join()
            self._write(live=False)

    def _write_on(self) -> None:
        while not self.over.wait(EVERY):
            self._write(live=True)

    def _write(self, live: bool) -> None:
        if not any(self.results.glob(f"*/{progress.NAME}")):
            return
        from lockstep.pipeline.page.write import write_page

        try:
            write_page(self.results, self.names, live)
        except Exception as error:  # a page is no reason for a training to stop
            say(f"{self.results / NAME}: not written: {first_line(error)}")


def look_digest() -> str:
    """Return one hash of what a page looks like: its templates, which are no code."""
    return json_sha256({path.name: sha256(path) for path in TEMPLATES.iterdir()})[:16]
