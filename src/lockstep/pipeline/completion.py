"""Completion in shells: a script that knows every command and flag, and starts no Python."""

import argparse
from pathlib import Path

from lockstep.checkpoint import ask
from lockstep.distributed import launcher
from lockstep.errors import Parser, UserError
from lockstep.testing import verify

# What is no stage: `lockstep.__main__` hands these words on before the stages are looked at.
OF_THE_LIBRARY = {"grow": ask, "launch": launcher, "shrink": ask, "stop": ask, "verify": verify}


def completion(parser: Parser, shell: str) -> str:
    """Return the script that has a shell complete `lockstep`.

    Args:
        parser: that of all stages.
        shell: bash, zsh or fish.

    Raises:
        UserError: shtab, which writes it, is not installed.
    """
    try:
        import shtab
    except ImportError:
        raise UserError("shtab is missing; pip install 'lockstep[completion]'") from None
    (stages,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    for word, module in OF_THE_LIBRARY.items():
        of_word = module.make_parser(word)
        what = of_word.description
        # Help of its own would be there twice.
        stages.add_parser(word, help=what, description=what, parents=[of_word], add_help=False)
    for sub in stages.choices.values():
        for action in sub._actions:
            if action.type is Path or action.dest in ("script", "words"):
                action.complete = shtab.FILE
    script: str = shtab.complete(parser, shell)
    return script
