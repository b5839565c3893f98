"""machine.html: what `check` found about each launch."""

from collections.abc import Iterable
from html import escape
from typing import Any

from lockstep.pipeline.report.page import make_page, make_table

PLACE = ("host", "address", "cores", "bound_to", "threads", "processor", "device")


def page_of_machine(checks: dict[str, dict[str, Any]]) -> str:
    """Return the page of what was found, by the name of the launch."""
    launches = make_table(
        [
            "launch",
            "ranks",
            "hosts",
            "launcher",
            "MPI",
            "backend",
            "first all-reduce, ms",
            "median of the next 10, ms",
        ],
        [row for name, check in checks.items() for row in _launch(name, check)],
        {1: "number", 2: "number", 6: "number", 7: "number"},
    )
    places = make_table(
        ["launch", "ranks", *(name.replace("_", " ") for name in PLACE)],
        [row for name, check in checks.items() for row in _places(name, check["ranks"])],
        {4: "number", 6: "number"},
    )
    models = sorted({item for check in checks.values() for item in check["models"].items()})
    software = {
        "system": {name: check["system"] for name, check in checks.items()},
        "instruction set": {name: _arithmetic(check) for name, check in checks.items()},
    }
    for name, check in checks.items():
        for package, version in check["versions"].items():
            software.setdefault(package, {})[name] = version
    return make_page(
        "Machine",
        launches,
        "<h2>Where the ranks were</h2>",
        places,
        "<h2>Models</h2>",
        make_table(
            ["model", "parameters"],
            [[escape(name), f"{count:,}"] for name, count in models],
            {1: "number"},
        ),
        "<h2>Software</h2>",
        make_table(
            ["", "found"], [[escape(what), _agree(found)] for what, found in software.items()]
        ),
    )


def _launch(name: str, check: dict[str, Any]) -> Iterable[list[str]]:
    """Yield a row for each backend of a launch."""
    hosts = {place["host"] for place in check["ranks"]}
    for backend, times in check["backends"].items():
        first = [name, len(check["ranks"]), len(hosts), check["launcher"], check["mpi"], backend]
        milliseconds = [f"{times['first_ms']:.3f}", f"{times['median_ms']:.3f}"]
        yield [escape(str(cell)) for cell in first] + milliseconds


def _places(name: str, ranks: list[dict[str, Any]]) -> Iterable[list[str]]:
    """Yield a row for each run of ranks that are in the same place: a host may have hundreds."""
    start = 0
    for end in range(1, len(ranks) + 1):
        place = [str(ranks[start].get(key, "")) for key in PLACE]
        if end < len(ranks) and place == [str(ranks[end].get(key, "")) for key in PLACE]:
            continue
        numbers = f"{start}" if end - start == 1 else f"{start} to {end - 1}"
        yield [escape(cell) for cell in (name, numbers, *place)]
        start = end


def _arithmetic(check: dict[str, Any]) -> str:
    found = check["arithmetic"]
    caps = [f"{name}={value}" for name, value in found["caps"].items()]
    return ", ".join([found["instruction_set"], found["machine"], *caps])


def _agree(found: dict[str, str]) -> str:
    """Return what all launches found, or who found what."""
    launches: dict[str, list[str]] = {}
    for name, value in found.items():
        launches.setdefault(value, []).append(name)
    if len(launches) == 1:
        return escape(next(iter(launches)))
    return "<br>".join(escape(f"{value} ({', '.join(names)})") for value, names in launches.items())
