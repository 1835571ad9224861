"""Looks at what a step did beside its numbers: a neighbour's micro-batch computed again, and what a forward left changed."""

from samestep.checks.attributes import look
from samestep.checks.audit import Auditor, NoAudit
from samestep.checks.purity import NoPurity, Purity
from samestep.checks.recompute import Recompute

__all__ = ["Auditor", "NoAudit", "NoPurity", "Purity", "Recompute", "look"]
