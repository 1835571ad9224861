"""What a user writes, a model, its data and its loss: the contract, and how the class that a config names is found."""

from samestep.task.contract import (
    Batch,
    Columns,
    Loss,
    Numbers,
    Ratio,
    Task,
    batch_behind,
    checked_loss,
    checked_metrics,
    refuse_taken,
)
from samestep.task.mean import mean
from samestep.task.step import NOW, at_step, step

__all__ = [
    "NOW",
    "Batch",
    "Columns",
    "Loss",
    "Numbers",
    "Ratio",
    "Task",
    "at_step",
    "batch_behind",
    "checked_loss",
    "checked_metrics",
    "mean",
    "refuse_taken",
    "step",
]
