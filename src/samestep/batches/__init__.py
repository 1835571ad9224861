"""Rows to tensors on the device, and what tells one data set from another."""

from samestep.batches.arrays import Arrays, are_arrays
from samestep.batches.columns import make_rows
from samestep.batches.differences import differences, doubt
from samestep.batches.identity import Identity, identity
from samestep.batches.loading import Batches, MicroBatch, Plan, on_device
from samestep.batches.rows import Rows
from samestep.batches.source import Source, is_dataset, order_of
from samestep.batches.tokens import Tokens

__all__ = [
    "Arrays",
    "Batches",
    "Identity",
    "MicroBatch",
    "Plan",
    "Rows",
    "Source",
    "Tokens",
    "are_arrays",
    "differences",
    "doubt",
    "identity",
    "is_dataset",
    "make_rows",
    "on_device",
    "order_of",
]
