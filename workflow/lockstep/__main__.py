"""`python -m lockstep STAGE ...` is `lockstep STAGE ...`."""

from lockstep.cli import main

main()
