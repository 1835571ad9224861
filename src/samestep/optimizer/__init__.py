"""How weights are stepped: the optimizer that a config names or a task makes, its rate, clipping, and fused steps."""

from samestep.optimizer.build import PartOptimizers, build_optimizer, checked_optimizer
from samestep.optimizer.fused import FusedStep
from samestep.optimizer.schedules import Plateau
from samestep.optimizer.step import GatedOptimizer, divide_and_clip, leave_dynamo_out

__all__ = [
    "FusedStep",
    "GatedOptimizer",
    "PartOptimizers",
    "Plateau",
    "build_optimizer",
    "checked_optimizer",
    "divide_and_clip",
    "leave_dynamo_out",
]
