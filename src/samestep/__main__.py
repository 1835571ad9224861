"""`python -m samestep …`, and what launchers start with `-m samestep`."""

from samestep.cli import main

main()
