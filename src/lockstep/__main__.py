"""`python -m lockstep STAGE ...` is `lockstep STAGE ...`."""

from lockstep.pipeline.cli import main

main()
