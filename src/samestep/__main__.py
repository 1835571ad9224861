"""The command `samestep`, `python -m samestep …`, and what launchers start with `-m samestep`."""

import sys

from samestep.runtime.early_stop import STARTING, end_quietly_when_asked
from samestep.runtime.hash_order import fix_hash_order

if not STARTING.isdisjoint(sys.argv[1:2]):
    end_quietly_when_asked()
fix_hash_order()

from samestep.cli import main  # noqa: E402

if __name__ == "__main__":
    main()
