"""A loss over each row twice: a sum is twice as much, and so is its weight. It tells a mean that was returned by mistake."""

from __future__ import annotations

import torch

from samestep.evaluation import evaluating
from samestep.loop import Training
from samestep.task import Batch

_ABOUT = 0.05


def doubled(run: Training, once: Batch) -> tuple[tuple[float, float], float, float]:
    """The loss's sum and weight over a batch, and how many times as much each is over every row of it twice."""
    twice = type(once)((name, torch.cat([tensor, tensor])) for name, tensor in once.items())
    with evaluating(run.model), torch.enable_grad():
        found, more = (run.checks.recompute.ratio(0, 0, batch) for batch in (once, twice))
    grown, heavier = (after / before if before else 2.0 for before, after in zip(found, more, strict=True))
    return found, grown, heavier


def mistaken(grown: float, heavier: float) -> str | None:
    """What is wrong with a loss that grows so, if it is a mean or has one weight for any number of rows."""
    if abs(grown - 1) < _ABOUT and abs(heavier - 2) < _ABOUT:
        return (
            "is the same over each row twice: a mean, where the sum belongs; write reduction='sum', or "
            "return samestep.mean(losses) of what reduction='none' gives"
        )
    if abs(heavier - 1) < _ABOUT:
        return "has the same weight over each row twice; return how many rows or tokens it sums over"
    return None
