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

__all__ = [
    "Batch",
    "Columns",
    "Loss",
    "Numbers",
    "Ratio",
    "Task",
    "batch_behind",
    "checked_loss",
    "checked_metrics",
    "refuse_taken",
]
