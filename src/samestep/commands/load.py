"""`samestep.load(RUN)`: the trained model of a run."""

from __future__ import annotations

import torch

from samestep.checkpoint import Checkpoints, read, restore
from samestep.config import load_config
from samestep.errors import UsageError
from samestep.run_folder import RunFolder
from samestep.task import load_task


def load(run: str) -> torch.nn.Module:
    """The model of a run with the weights of its newest whole checkpoint, on the CPU and in evaluation mode.

    Args:
        run: the name of a run under `runs`, or the path of its folder.

    Raises UsageError if there is no such run, or it has no checkpoint yet.
    """
    folder = RunFolder.found(run)
    config, _ = load_config(folder.config)
    path, _, _ = Checkpoints(folder, config.checkpoint.keep).newest()
    if path is None:
        raise UsageError(f"{run}: the run has no checkpoint yet; let it train on")
    model = load_task(config.task, config.fields).model()
    restore(read(path), model)
    return model.eval()
