"""What a run records and shows."""

from samestep.tracking.reports import Reports
from samestep.tracking.sinks import cut_back, wandb_mode
from samestep.tracking.tracker import NullTracker, Tracker

__all__ = ["NullTracker", "Reports", "Tracker", "cut_back", "wandb_mode"]
