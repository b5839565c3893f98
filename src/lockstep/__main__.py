"""`lockstep verify ...` is the library's; any other word is a stage of the pipeline.

The pipeline has libraries of its own, and `pip install lockstep` alone brings none of them.
"""

import importlib
import sys


def main() -> None:
    """Run what the command line names: the command `lockstep`, and `python -m lockstep`."""
    if sys.argv[1:2] == ["verify"]:
        importlib.import_module("lockstep.testing.verify").main(sys.argv[2:])
        return
    try:
        from lockstep.pipeline import cli

        cli.main()
    except ModuleNotFoundError as error:
        if (error.name or "lockstep").partition(".")[0] == "lockstep":
            raise
        print(
            f"lockstep: {error.name} is missing, which the pipeline needs; "
            f"pip install 'lockstep[pipeline]'",
            file=sys.stderr,
        )
        sys.exit(2)


if __name__ == "__main__":
    main()
