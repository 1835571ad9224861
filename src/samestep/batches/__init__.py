"""Rows to tensors on the device, and what tells one data set from another."""

from samestep.batches.columns import Rows
from samestep.batches.identity import Identity, differences, doubt, identity
from samestep.batches.loading import Batches, MicroBatch, Plan, on_device

__all__ = ["Batches", "Identity", "MicroBatch", "Plan", "Rows", "differences", "doubt", "identity", "on_device"]
