"""`samestep.load(RUN)`: the trained model of a run."""

from __future__ import annotations

from pathlib import Path

import torch

from samestep.checkpoint import Checkpoints, Saved, read, restore
from samestep.checkpoint.bringing import have_whole
from samestep.config import Config, load_config
from samestep.errors import UsageError
from samestep.run.folder import RunFolder
from samestep.task import Task
from samestep.task.loading import load_task


def load(run: str | Path, step: int | None = None, best: bool = False) -> torch.nn.Module:
    """The model of a run as a checkpoint holds it, on the CPU and in evaluation mode.

    Args:
        run: the name of a run under `runs`, the path of its folder, or its address in a store. Its task's file may be gone:
            the run keeps a copy.
        step: of the checkpoint; by default the newest whole one.
        best: the best by the run's `checkpoint.best`.

    Raises UsageError if there is no such run or checkpoint.
    """
    folder = RunFolder.found(str(run))
    config, _ = load_config(folder.config)
    saved = checkpoint_of(folder, config, step, best)
    model = task_of(folder, config).model()
    restore(saved, model)
    return model.eval()


def task_of(folder: RunFolder, config: Config) -> Task:
    """The task of a run; from the run's own copy where its file is not here."""
    place, _, name = config.task.rpartition(":")
    if place.endswith(".py") and not Path(place).is_file():
        for kept in (folder.sources / place, folder.sources / Path(place).name):
            if kept.is_file():
                return load_task(f"{kept}:{name}", config.fields)
    return load_task(config.task, config.fields)


def checkpoint_of(folder: RunFolder, config: Config, step: int | None, best: bool = False) -> Saved:
    """The checkpoint of `step`, the best, or the newest whole one. Raises UsageError if there is none."""
    checkpoints = Checkpoints(folder, config.checkpoint.keep)
    if best:
        if step is not None:
            raise UsageError(f"--best: found --step {step} beside it; write one of the two")
        step = checkpoints.best_step()
        if step is None:
            raise UsageError(
                f"--best: {folder.name} has kept no best; write --step N, or train with checkpoint.best=METRIC (or METRIC:max)"
            )
    if step is None:
        path, _, _ = checkpoints.newest()
        if path is None:
            raise UsageError(f"{folder.name}: the run has no checkpoint yet; let it train on")
        return read(path)
    steps = {int(path.name.removeprefix("step-")): path for path in checkpoints.all()}
    if step not in steps:
        there = ", ".join(str(known) for known in sorted(steps)) or "none"
        raise UsageError(f"--step: found {step}; {folder.name} has checkpoints of steps {there}")
    have_whole(folder, step)
    return read(steps[step])
