"""Which rows make a micro-batch, and how they come to the device ahead of their use."""

from samestep.batches.loading import Batches, MicroBatch, Plan, on_device

__all__ = ["Batches", "MicroBatch", "Plan", "on_device"]
