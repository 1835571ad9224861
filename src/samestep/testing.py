"""For tests of one's own: has anything changed the numbers of a training run?"""

from __future__ import annotations

from pathlib import Path

from samestep.commands.pin import compare, pin_file
from samestep.errors import TrainingError


def assert_same_bits(config: str | Path, *overrides: str, against: str | Path | None = None) -> str:
    """Train the steps that were pinned of a config, and compare each bit: losses, norms, gradients, weights.

    Args:
        config: as `samestep pin` was given it; its task is found from the working folder.
        overrides: `key=value`, the same ones.
        against: the file of the pinned bits; by default the one beside the config.

    Returns the line that says so: on a kind of device that the file has no pin of, the comparison is within a tolerance.
    Raises AssertionError with the first step and tensor that differ; UsageError where there is nothing to compare.
    """
    try:
        return compare(str(config), Path(against) if against else pin_file(str(config)), None, overrides)
    except TrainingError as error:
        raise AssertionError(str(error)) from None
