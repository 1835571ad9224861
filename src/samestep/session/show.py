"""What a task shows of its trained model."""

from __future__ import annotations

import contextlib

import torch

from samestep.errors import place_in_user_code
from samestep.loop import Training
from samestep.randomness.seeding import seed_all
from samestep.run.disk import write_atomically
from samestep.run.folder import RunFolder


def shown(run: Training, folder: RunFolder, keeps: bool) -> str:
    """The text, kept beside the run; that is done by now, and whatever goes wrong here is a warning.

    Of a sharded model every rank asks for it, since no forward is one rank's alone; one of them `keeps` it.
    """
    model = run.model.eval()
    # Compiled blocks step aside, for here each length would be a new shape.
    eager = torch.compiler.set_stance("force_eager") if run.config.compile else contextlib.nullcontext()
    try:
        seed_all(run.config.seed)
        with eager:
            text = run.task.show(model)
        if text and keeps:
            write_atomically(folder.shown, text)
        return text
    except Exception as error:
        return f"WARNING: show() failed ({type(error).__name__}: {error}{place_in_user_code(error)}); the run itself is done"
