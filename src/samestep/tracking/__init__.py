"""What a run records and shows."""

from samestep.tracking.background import RunInfo
from samestep.tracking.metrics_file import cut_back
from samestep.tracking.other_trackers import find_tracker
from samestep.tracking.pace import Pace, peak_flops
from samestep.tracking.reports import Reports
from samestep.tracking.tracker import NullTracker, Tracker
from samestep.tracking.wandb_run import wandb_mode

__all__ = ["NullTracker", "Pace", "Reports", "RunInfo", "Tracker", "cut_back", "find_tracker", "peak_flops", "wandb_mode"]
