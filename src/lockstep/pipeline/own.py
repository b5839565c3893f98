"""The user's own code, by `package.module:function`."""

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lockstep.errors import UserError, first_line


def find(name: str, key: str, called: str, arguments: tuple[object, ...]) -> Callable[..., Any]:
    """Import a function of the user's; it is looked for in the working directory first.

    Args:
        name: `package.module:function`.
        key: what it is the value of, for messages.
        called: how it will be called, in words.
        arguments: some that it must take.

    Raises:
        UserError: it cannot be imported, or called so.
    """
    module, _, function = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        make = getattr(importlib.import_module(module), function)
    except Exception as error:  # it is the user's code that runs here
        missing = isinstance(error, ModuleNotFoundError) or type(error) is AttributeError
        raise UserError(
            f"{key}: {name} cannot be imported ({type(error).__name__}: {error}); it is looked for "
            f"in {here} and among the installed packages"
        ) from (None if missing else error)
    try:
        inspect.signature(make).bind(*arguments)
    except (TypeError, ValueError) as error:  # such as os:system: it is not called to see
        raise UserError(f"{key}: {name} cannot be called {called}: {first_line(error)}") from None
    found: Callable[..., Any] = make
    return found
