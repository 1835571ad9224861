"""Looks at what a step did beside its numbers: a neighbour's micro-batch computed again, and what a forward left changed."""

from samestep.checks.after_step import NoTwice, Twice
from samestep.checks.attributes import look
from samestep.checks.audit import Auditor, NoAudit, Schedule
from samestep.checks.proof import NoProof, Proof
from samestep.checks.purity import NoPurity, Purity
from samestep.checks.recompute import Recompute
from samestep.checks.step_checks import Checks

__all__ = [
    "Auditor",
    "Checks",
    "NoAudit",
    "NoProof",
    "NoPurity",
    "NoTwice",
    "Proof",
    "Purity",
    "Recompute",
    "Schedule",
    "Twice",
    "look",
]
