"""`samestep export`: a run's weights for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch

from samestep.checkpoint import restore, weights_hash
from samestep.commands.find_run import refuse_existing
from samestep.commands.load import checkpoint_of, task_of
from samestep.config import Config
from samestep.errors import UsageError
from samestep.run.best import best_words
from samestep.run.folder import RunFolder


def export(folder: RunFolder, config: Config, to: Path | None, step: int | None, best: bool = False) -> str:
    """Write a checkpoint's weights to a file of safetensors, or a model of transformers to a folder. Returns what it wrote.

    Args:
        to: a path at which there is nothing yet; by default the run's name, here.
        step, best: which checkpoint; by default the newest whole one.

    Raises UsageError if there is no such checkpoint, or the model has no folder of its own to be written to.
    """
    saved = checkpoint_of(folder, config, step, best)
    task = task_of(folder, config)
    model: Any = task.model()
    if to is None:
        to = Path(folder.name if hasattr(model, "save_pretrained") else f"{folder.name}.safetensors")
        refuse_existing(to)
    is_file = to.suffix == ".safetensors"
    if not is_file and not hasattr(model, "save_pretrained"):
        raise UsageError(f"{to}: {type(model).__name__} is no model of transformers; write a path that ends in .safetensors")
    restore(saved, model)
    to.parent.mkdir(parents=True, exist_ok=True)
    aside = to.with_name(f".{to.name}.tmp")
    if is_file:
        safetensors.torch.save_model(model, str(aside), metadata={"format": "pt"})
    else:
        model.save_pretrained(aside)
        task.export(aside)
    aside.rename(to)
    words = best_words(folder.read_state())
    which = f" ({words})" if words and words.endswith(f" {saved.step}") else f" (the {words}: --best)" if words else ""
    return f"wrote {to}: step {saved.step} of {folder.name}{which}, weights {weights_hash(model)}"
