"""A program for any number of ranks: run scripts one after the other, as if each were by itself.

Starting processes takes longer than what the scripts do.
"""

import contextlib
import json
import runpy
import sys
from pathlib import Path

from lockstep.testing import faults, trace


def main() -> None:
    faults.POISON = True
    for case in json.loads(Path(sys.argv[1]).read_text()):
        sys.argv = case["words"]
        trace.WANTED = case.get("trace", "")
        with contextlib.suppress(SystemExit):
            runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
