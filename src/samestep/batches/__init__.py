"""Rows to tensors on the device."""

from samestep.batches.columns import Rows
from samestep.batches.loading import Batches, MicroBatch, Plan, on_device

__all__ = ["Batches", "MicroBatch", "Plan", "Rows", "on_device"]
