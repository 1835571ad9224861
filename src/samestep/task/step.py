"""The step that is computed now, for a loss that changes over a run: an annealed weight, teacher forcing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from samestep.errors import UsageError


class _Now:
    step: int | None = None


NOW = _Now()  # a value and no call: the loop sets it for each micro-batch


def step() -> int:
    """The optimizer step, from 1, that the loss is computed for; in an evaluation the number of finished steps.

    The same on every rank and after every resume. Raises UsageError elsewhere: rows depend on (epoch, row) alone.
    """
    if NOW.step is None:
        raise UsageError("samestep.step(): it is known within loss and metrics alone; after_step is given it")
    return NOW.step


@contextlib.contextmanager
def at_step(number: int) -> Iterator[None]:
    """What is computed inside belongs to step `number`."""
    before, NOW.step = NOW.step, number
    try:
        yield
    finally:
        NOW.step = before
