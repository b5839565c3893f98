"""watch: where trainings are, from the files that they write, on any host that sees them."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live

from lockstep.errors import UserError
from lockstep.pipeline import planned
from lockstep.pipeline.live import fitting, rows
from lockstep.pipeline.seen import Lines, Seen, look
from lockstep.progress import NAME

# Seconds between two looks.
EVERY = 1.0


@dataclass(frozen=True)
class Sight:
    """What there is to be seen."""

    seen: list[Seen]
    waiting: int
    """How many runs of a workflow have not begun."""
    goes_on: bool
    """Whether such a workflow runs."""

    @property
    def is_over(self) -> bool:
        """Whether nothing more comes."""
        return all(one.is_over for one in self.seen) and not (self.waiting and self.goes_on)

    def words(self) -> str:
        """Return how many runs are where: "2 of 9 done, 7 not begun"; of a single one, nothing."""
        states = Counter(one.state for one in self.seen)
        parts = [f"{states['done']} of {len(self.seen) + self.waiting} done"]
        parts += [f"{states[state]} {state}" for state in ("stopped", "ended") if states[state]]
        parts += [f"{self.waiting} not begun"] if self.waiting else []
        return ", ".join(parts) if len(self.seen) + self.waiting > 1 else ""


def watch(results: list[Path]) -> None:
    """Show where trainings are until all of them are over, those of a workflow that have not begun
    with them; where there is none, wait for the first.

    Args:
        results: folders of runs, or folders that have some below them.

    Raises:
        UserError: a workflow has ended before anything was trained.
    """
    console = Console()
    sight = _wait_for_the_first(results)
    if console.is_terminal:
        with Live(_view(sight, console), console=console, auto_refresh=False) as live:

            def show(sight: Sight) -> None:
                live.update(_view(sight, console), refresh=True)

            _follow(results, sight, show, Lines().resumed)
    else:
        said = ""

        def show(sight: Sight) -> None:
            nonlocal said
            if sight.words() != said:
                said = sight.words()
                print(said, flush=True)

        _follow(results, sight, show, Lines().new)


def _follow(
    results: list[Path],
    sight: Sight,
    show: Callable[[Sight], None],
    news: Callable[[Seen], list[str]],
) -> None:
    """Print the news of each training, and show what there is to be seen, until it is over."""
    while True:
        for one in sight.seen:
            for line in news(one):
                print(line, flush=True)  # above a view, which redirects it
        show(sight)
        if sight.is_over:
            return
        time.sleep(EVERY)
        sight = _look(results)


def _wait_for_the_first(results: list[Path]) -> Sight:
    said = went_on = False
    where = ", ".join(map(str, results))
    while not (sight := _look(results)).seen:
        if went_on and not sight.goes_on:
            raise UserError(f"{where}: the workflow has ended, and nothing was trained")
        went_on = sight.goes_on
        if not said:
            said = True
            missing = [place for place in results if not place.is_dir()]
            what = f"{missing[0]}: No such folder" if missing else f"{where}: nothing has trained"
            print(f"{what} yet; waiting for the first training (Ctrl-C ends this)", flush=True)
        time.sleep(EVERY)
    return sight


def _view(sight: Sight, console: Console) -> Group:
    """Return what fits the terminal."""
    shown, more = fitting(sight.seen, console.height - 3)
    foot = " · ".join(filter(None, [f"and {more} more" if more else "", sight.words()]))
    return Group(rows(shown, console.width), *([foot] if foot else []))


def _look(results: list[Path]) -> Sight:
    found, begun = dict[Path, None](), dict[Path, None]()
    goes_on = False
    for place in results:
        own = (place / NAME).exists() or (place / "checkpoints").is_dir()
        below = [] if own else sorted(file.parent for file in place.glob(f"**/{NAME}"))
        begun |= dict.fromkeys([place] if own else below)
        if not own:
            plan = planned.read(place)
            found |= dict.fromkeys(plan.folders)
            goes_on = goes_on or plan.goes_on
    names = [folder.resolve().name for folder in begun]
    seen = [
        look(name if names.count(name) == 1 else str(folder), folder)
        for name, folder in zip(names, begun, strict=True)
    ]
    return Sight(seen, len(found.keys() - begun.keys()), goes_on)
