"""What is looked at in a step beside its numbers, at the places where the training sequence lets a look in."""

from __future__ import annotations

from samestep.checks.audit import NoAudit
from samestep.checks.purity import NoPurity
from samestep.checks.recompute import Recompute


class Checks:
    """The audit of the devices and the watch over the task, as one."""

    def __init__(self, audit: NoAudit, purity: NoPurity, recompute: Recompute) -> None:
        self.audit, self.purity, self.recompute = audit, purity, recompute
        self.begin, self.compare = audit.begin, audit.compare
        self.begin_micro_batch, self.end_micro_batch = purity.begin_micro_batch, purity.end_micro_batch
        self.evaluation = purity.evaluation
