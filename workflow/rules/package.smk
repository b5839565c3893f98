"""The package that the rules are made with, and the configuration looked at before Snakemake does."""

import os
import sys
from pathlib import Path

# Whether another workflow has this one as a module (docs/module.md), or includes nothing but it.
MODULE = None if workflow.modifier.is_main_snakefile() else __name__

# Jobs find this package and this Python: a shell's `python` may be another, and a conda environment
# that is activated later still comes before both. Beside a module that Snakemake takes from a
# repository there is none: it is the installed one.
HERE = workflow.current_basedir.get_path_or_uri(secret_free=True)
WORKFLOW = Path(HERE).parent.resolve()
SNAKEFILE = str(WORKFLOW / "Snakefile")
PACKAGE = [str(path) for path in [WORKFLOW.parent / "src"] if path.is_dir()]
sys.path[:0] = PACKAGE
os.environ.update(
    PATH=os.pathsep.join([str(Path(sys.executable).parent), os.getenv("PATH", "")]),
    PYTHONPATH=os.pathsep.join(filter(None, [*PACKAGE, os.getenv("PYTHONPATH")])),
)

from lockstep.pipeline.yaml_file import check_file
from lockstep.errors import UserError

try:
    if not MODULE and Path("config/config.yaml").exists():
        check_file(Path("config/config.yaml"))
except UserError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
