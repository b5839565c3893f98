"""Mistakes of YAML in a configuration file, told by line before Snakemake reads the file."""

import json
from pathlib import Path

import yaml

from lockstep.errors import UserError, first_line

# A configuration has some hundred values; aliases of aliases make more of them than memory holds.
MOST_VALUES = 100_000


def check_file(path: Path) -> None:
    """Refuse a configuration file that cannot be read, or is read otherwise than it looks.

    Snakemake reads the file itself. It says neither where a mistake is, nor that a key is there
    twice, of which the last one counts.

    Raises:
        UserError: the first thing that is wrong, with the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        # JSON may be indented by tabs, YAML may not.
        loader = yaml.SafeLoader(text.replace("\t", " ") if _is_json(text) else text)
        if (top := loader.get_single_node()) is not None:
            _check_node(top, path, {})
            loader.construct_document(top)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not a text in UTF-8: {error.reason} at byte {error.start}"
        ) from None
    except RecursionError:
        raise UserError(f"{path}: nested too deeply") from None
    except yaml.YAMLError as error:
        mark, why = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        line = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise UserError(f"{path}: {line}not YAML: {why or first_line(error)}") from None
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        # Of a number with 5,000 digits, say, or a tag that does not fit.
        raise UserError(f"{path}: a value cannot be read: {first_line(error)}") from None
    if not isinstance(top, yaml.MappingNode | None):
        raise UserError(f"{path}: expected keys with values, as in config/config.yaml")


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _check_node(node: yaml.Node, path: Path, sizes: dict[int, int]) -> int:
    """Return how many values a node of YAML stands for, aliases written out.

    Args:
        node: the node.
        path: the file, for messages.
        sizes: what is known, by the nodes' identity; 0 for one that is being counted.
    """
    if id(node) in sizes and not sizes[id(node)]:
        raise UserError(f"{path}: line {node.start_mark.line + 1}: it contains itself")
    if id(node) in sizes:
        return sizes[id(node)]
    sizes[id(node)] = 0
    inner = list(node.value) if isinstance(node, yaml.SequenceNode) else []
    if isinstance(node, yaml.MappingNode):
        keys: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise UserError(f"{path}: line {line}: a key must be a word")
            if key.value in keys:
                first = keys[key.value]
                why = f"the key {key.value!r} is there twice, first in line {first}; take one away"
                raise UserError(f"{path}: line {line}: {why}")
            keys[key.value] = line
            inner.append(value)
    size = 1 + sum(_check_node(one, path, sizes) for one in inner)
    if size > MOST_VALUES:
        line = node.start_mark.line + 1
        raise UserError(
            f"{path}: line {line}: more than {MOST_VALUES:,} values, aliases written out"
        )
    sizes[id(node)] = size
    return size
