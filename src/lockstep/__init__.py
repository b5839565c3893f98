"""Distributed training of PyTorch models whose bits do not depend on how it ran.

What is in `__all__` is public, and nothing else.
"""

from typing import TYPE_CHECKING, Any

from lockstep.errors import Interrupted, UserError

if TYPE_CHECKING:
    from lockstep.loop import OwnSession as Session
    from lockstep.loop import init
    from lockstep.run import Run
    from lockstep.step import Shard, Step

__version__ = "0.1.0"
__all__ = ["Interrupted", "Run", "Session", "Shard", "Step", "UserError", "__version__", "init"]

_PLACES = {
    "Run": "lockstep.run:Run",
    "Session": "lockstep.loop:OwnSession",
    "Shard": "lockstep.step:Shard",
    "Step": "lockstep.step:Step",
    "init": "lockstep.loop:init",
}


def __getattr__(name: str) -> Any:
    """Import a name when it is asked for: stages of the pipeline that need no torch load none."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    module, _, inside = _PLACES[name].partition(":")
    return getattr(importlib.import_module(module), inside)
