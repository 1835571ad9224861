"""What is looked at in a step beside its numbers, at the places where the training sequence lets a look in."""

from __future__ import annotations

from collections.abc import Callable

from samestep.batches import MicroBatch
from samestep.checks.after_step import NoTwice
from samestep.checks.audit import NoAudit
from samestep.checks.proof import NoProof
from samestep.checks.purity import NoPurity
from samestep.checks.recompute import Recompute


class Checks:
    """The audit of the devices and the watch over the task, as one."""

    def __init__(self, audit: NoAudit, purity: NoPurity, recompute: Recompute, twice: NoTwice, proof: NoProof) -> None:
        self.audit, self.purity, self.recompute, self.twice, self.proof = audit, purity, recompute, twice, proof
        self.begin_start, self.compare = proof.begin_start, audit.compare
        self.evaluation = purity.evaluation

    def after_step(self, step: int, change: Callable[[], None]) -> None:
        """Run the task's after_step. Raises UsageError for what it may not do."""

        def watched() -> None:
            with self.purity.after_step(step):
                change()

        self.twice(step, watched)

    def begin(self, step: int) -> None:
        """Before a step; in most of them nothing is audited, and nothing is asked."""
        self.audit.begin(step)
        audited, watched = (
            (self._begin_micro_batch, self._end_micro_batch),
            (self.purity.begin_micro_batch, self.purity.end_micro_batch),
        )
        self.begin_micro_batch, self.end_micro_batch = audited if self.audit.is_on else watched

    def _begin_micro_batch(self, step: int, micro: MicroBatch) -> None:
        self.purity.begin_micro_batch(step, micro)
        self.audit.begin_micro_batch(step, micro)

    def _end_micro_batch(self, step: int, micro: MicroBatch) -> None:
        self.audit.end_micro_batch(step, micro)  # first, for what its forwards change is a change as any other's
        self.purity.end_micro_batch(step, micro)
