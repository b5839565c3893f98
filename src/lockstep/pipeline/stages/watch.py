"""watch: where trainings are, from the files that they write, on any host that sees them."""

import time
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live

from lockstep.errors import UserError
from lockstep.pipeline.live import fitting, rows
from lockstep.pipeline.seen import Lines, Seen, look
from lockstep.progress import NAME

# Seconds between two looks.
EVERY = 1.0


def watch(results: list[Path]) -> None:
    """Show where trainings are until all of them are over.

    Args:
        results: folders of runs, or folders that have some below them.

    Raises:
        UserError: there is no training.
    """
    runs = _find(results)
    lines, console = Lines(), Console()
    seen = [look(name, folder) for name, folder in runs.items()]
    if not console.is_terminal:
        while True:
            for one in seen:
                for line in lines.new(one):
                    print(line, flush=True)
            if all(one.is_over for one in seen):
                return
            time.sleep(EVERY)
            seen = [look(name, folder) for name, folder in _find(results).items()]
    with Live(_view(seen, console), console=console, auto_refresh=False) as live:
        while not all(one.is_over for one in seen):
            time.sleep(EVERY)
            seen = [look(name, folder) for name, folder in _find(results).items()]
            live.update(_view(seen, console), refresh=True)


def _view(seen: list[Seen], console: Console) -> Group:
    """Return what fits the terminal."""
    shown, more = fitting(seen, console.height - 2)
    return Group(rows(shown, console.width), *([f"and {more} more"] if more else []))


def _find(results: list[Path]) -> dict[str, Path]:
    """Return folders of runs, by names that tell them apart."""
    found: dict[Path, None] = {}
    for place in results:
        if not place.is_dir():
            raise UserError(f"{place}: No such folder; expected that of a run, or one with runs")
        own = (place / NAME).exists() or (place / "checkpoints").is_dir()
        below = [] if own else sorted(file.parent for file in place.glob(f"**/{NAME}"))
        found |= dict.fromkeys([place] if own else below)
    if not found:
        raise UserError(f"{', '.join(map(str, results))}: nothing has trained here yet")
    names = [folder.resolve().name for folder in found]
    return {
        name if names.count(name) == 1 else str(folder): folder
        for name, folder in zip(names, found, strict=True)
    }
