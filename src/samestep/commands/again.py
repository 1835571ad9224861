"""A recorded run, built once more on one process here, from any of its checkpoints: what replay and prove train."""

from __future__ import annotations

from accelerate import Accelerator

from samestep.checkpoint import Saved
from samestep.checks import Checks, NoAudit, NoProof, NoPurity, NoTwice
from samestep.config import Config
from samestep.control import StopFlag
from samestep.loop import Training
from samestep.runtime import read_runtime
from samestep.session import Plans, build
from samestep.task import Task
from samestep.tracking import NullTracker


def build_again(
    config: Config, task: Task, accelerator: Accelerator, saved: Saved | None, num_steps: int, tracker: NullTracker
) -> Training:
    """The run as it stood at `saved`, or at its start, up to a step. It saves nothing, and looks at nothing but its numbers."""
    runtime = read_runtime()
    plans = Plans(task, accelerator, runtime, StopFlag(), saved, [runtime.host], num_steps=num_steps)
    training = build(config, plans, lambda all_steps: tracker)
    training.checks = Checks(NoAudit(), NoPurity(), training.checks.recompute, NoTwice(), NoProof())
    return training
