"""`samestep evaluate`: a run's metrics, on any of its splits."""

from __future__ import annotations

from samestep.checkpoint import restore
from samestep.commands.load import checkpoint_of, task_of
from samestep.config import Config
from samestep.control import Watchdog
from samestep.errors import UsageError
from samestep.randomness.seeding import seed_all
from samestep.run.folder import RunFolder
from samestep.runtime import prepare_environment, read_runtime
from samestep.session import make_accelerator, make_evaluator, read_split
from samestep.session.blocks import compile_blocks
from samestep.task import at_step


def evaluate(folder: RunFolder, config: Config, split: str, step: int | None, best: bool = False) -> dict[str, float]:
    """Each metric of a checkpoint over a split, as an evaluation in the run itself would have it, to the bit; and the `step`.

    Args:
        split: what the task's `data` is asked for.
        step: of the checkpoint; by default the newest whole one.
        best: the best by the run's `checkpoint.best`.

    Raises UsageError if there is no such checkpoint or split.
    """
    prepare_environment(read_runtime(), config.threads)
    accelerator = make_accelerator(config)
    task = task_of(folder, config)
    saved = checkpoint_of(folder, config, step, best)
    seed_all(config.seed)
    model = task.model().to(accelerator.device)
    restore(saved, model)
    if config.compile:
        compile_blocks(model)
    rows = read_split(task, config.seed, split)
    if rows is None:
        raise UsageError(f'--data: data("{split}") is None; write a split that the task has, train say')
    with at_step(saved.step):
        found = make_evaluator(config, task, accelerator, model, rows)(model, lambda: 0, Watchdog.off())
    return {"step": saved.step, **(found or {})}
