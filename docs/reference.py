"""Write docs/commands.md from the parsers, and docs/api.md from the library's docstrings.

`make reference` does so; a test says when it was forgotten. The pages are committed, as the schemas
are, so that links to them work where only the repository is read.
"""

import argparse
import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lockstep
from lockstep.__main__ import OF_THE_LIBRARY
from lockstep.pipeline import cli

HERE = Path(__file__).parent
NOTE = "<!-- Written by `make reference`; edit the source instead. -->"

# What of the library's classes is for users; the rest is how they do it.
MEMBERS = {
    "Session": ["rank", "size", "build", "run"],
    "Run": ["steps", "history", "sha256", "stop"],
    "Step": ["clip"],
    "Shard": ["backward"],
}


def commands() -> str:
    """Return the page of the command line."""
    stages = next(
        a for a in cli.make_parser()._actions if isinstance(a, argparse._SubParsersAction)
    )
    parsers = dict(stages.choices)
    for name, module in OF_THE_LIBRARY.items():
        parsers[name] = importlib.import_module(module).make_parser(name)
    parts = [
        NOTE,
        "# The command line",
        "`lockstep COMMAND --help` says the same. Where the workflow runs a command, Snakemake "
        "gives it its flags; you need them to run one by hand. A key of the configuration is a "
        "flag as well, with hyphens, and means the same: [config/README.md](../config/README.md) "
        "says more of each.",
        "Exit status: 0, done; 1, failed, or (of `diff`, `reproduce` and `verify`) the bits "
        "differ; 2, you can mend it, and one line says how; 75, told to stop, and saved; 130, "
        "Ctrl-C.",
    ]
    for name, parser in sorted(parsers.items()):
        parts += [f"## lockstep {name}", parser.description or "", *_flags(parser)]
    return "\n\n".join(parts) + "\n"


def _flags(parser: argparse.ArgumentParser) -> Iterator[str]:
    actions = [a for a in parser._actions if not isinstance(a, argparse._HelpAction)]
    given = [
        f"{a.metavar or a.dest}{' …' * bool(a.nargs)}" for a in actions if not a.option_strings
    ]
    needed = [f"{a.option_strings[0]} …" for a in actions if a.option_strings and a.required]
    rest = " […]" if any(a.option_strings and not a.required for a in actions) else ""
    words = " ".join([parser.prog.replace(" COMMAND", ""), *needed, *given]) + rest
    yield f"```text\n{parser.usage or words}\n```"
    rows = [f"| {_name(action)} | {_cell(_meaning(action))} |" for action in actions]
    yield "\n".join(["| flag | meaning |", "|---|---|", *rows])


def _name(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"`{action.metavar or action.dest}`"
    return ", ".join(f"`{name}`" for name in action.option_strings)


def _meaning(action: argparse.Action) -> str:
    text = (action.help or "").replace("%(default)s", str(action.default)).replace("%%", "%")
    if action.choices:
        text += ": " + ", ".join(f"`{choice}`" for choice in action.choices)
    return text + (" (required)" if action.option_strings and action.required else "")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def api() -> str:
    """Return the page of the library's names."""
    parts = [
        NOTE,
        "# The Python API",
        "What `import lockstep` gives; nothing else is public. [The library](library.md) tells how "
        "it is used.",
    ]
    for name in ("init", *MEMBERS, "UserError", "Interrupted"):
        thing = getattr(lockstep, name)
        parts.append(f"## {name}")
        if inspect.isfunction(thing):
            parts.append(_signature(f"lockstep.{name}", thing))
        parts.append(_markdown(thing))
        for member in MEMBERS.get(name, ()):
            of = inspect.getattr_static(thing, member)
            parts.append(f"### {name.lower()}.{member}")
            if not isinstance(of, property):
                # `session.run` hands on to Run what it is given.
                makes = lockstep.Run.__init__ if (name, member) == ("Session", "run") else of
                parts.append(_signature(f"{name.lower()}.{member}", makes))
            parts.append(_markdown(of))
    return "\n\n".join(parts) + "\n"


def _signature(name: str, function: Any) -> str:
    """Return a call as the source has it: `inspect` would write types out in full."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    assert isinstance(node, ast.FunctionDef)
    node.args.args = [one for one in node.args.args if one.arg not in ("self", "session")]
    result = f" -> {ast.unparse(node.returns)}" if node.returns and node.name != "__init__" else ""
    line = f"{name}({ast.unparse(node.args)}){result}".replace("OwnSession", "Session")
    return f"```text\n{line}\n```"


def _markdown(thing: Any) -> str:
    """Return a docstring with its sections (`Args:`, `Raises:`, …) as lists."""
    lines: list[str] = []
    for line in (inspect.getdoc(thing) or "").splitlines():
        if re.fullmatch(r"[A-Z][a-z]+:", line):
            lines += [f"**{line.removesuffix(':')}**", ""]
        elif entry := re.match(r" {4}([\w*]+): (.*)", line):
            lines.append(f"- `{entry[1]}`: {entry[2]}")
        elif line.startswith(" " * 8) and lines[-1]:
            lines[-1] += f" {line.strip()}"
        else:
            lines.append(line.strip())
    return "\n".join(lines)


PAGES = {"commands.md": commands, "api.md": api}

if __name__ == "__main__":
    for page, write in PAGES.items():
        (HERE / page).write_text(write())
