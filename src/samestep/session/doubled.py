"""A loss over each row twice: a sum is twice as much, and so is its weight. It tells a mean that was returned by mistake."""

from __future__ import annotations

import contextlib

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


def note_a_mean(run: Training) -> None:
    """Before a run's first step, one line about a loss that is a mean: half a micro-batch's rows, once and twice."""
    if run.first_step or run.sums.sharded is not None:  # no rank runs a forward alone there
        return
    eager = torch.compiler.set_stance("force_eager") if run.config.compile else contextlib.nullcontext()
    with contextlib.suppress(Exception), eager:  # rows that cannot be doubled train all the same
        batch = run.checks.recompute.rows(0, 0)
        half = type(batch)((name, tensor[: run.config.micro_batch_size // 2]) for name, tensor in batch.items())
        _, grown, heavier = doubled(run, half)
        if words := mistaken(grown, heavier):
            run.reports.tracker.line(f"WARNING: loss {words} (docs/tasks.md)")
