"""The command `samestep`, `python -m samestep …`, and what launchers start with `-m samestep`."""

from samestep.runtime.hash_order import fix_hash_order

fix_hash_order()

from samestep.cli import main  # noqa: E402

if __name__ == "__main__":
    main()
