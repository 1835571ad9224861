"""`samestep.main`: a script that trains when it is run, by whatever launcher, and is a config wherever one is asked for."""

from __future__ import annotations

import sys
from typing import Any

from samestep.cli.root import main as run_command_line
from samestep.errors import UsageError
from samestep.task import Task
from samestep.task.script import declare, module_of, place_of


def main(task: type[Task] | Task, **config: Any) -> None:
    """Train a task: the last line of a script, `samestep.main(Mine, steps=200, global_batch_size=64, …)`.

    `python mine.py --run first lr=3e-3` lays what is typed over `config`, as `samestep train` does over a YAML file.
    `torchrun`, `accelerate launch`, `samestep launch mine.py`, `samestep verify mine.py` and `samestep submit mine.py`
    take the script as well. A script that is only imported trains nothing.

    Args:
        task: a class derived from `samestep.Task`, or such a task with its fields set.
        config: the keys of a config but for `task` and `with`; dicts where YAML has mappings.

    Raises UsageError where there is no file to start again, in a notebook say. It ends the process otherwise.
    """
    caller = str(sys._getframe(1).f_globals.get("__name__"))
    if caller != "__main__":
        declare(caller, task, config)
        return
    file = getattr(sys.modules["__main__"], "__file__", None)
    if file is None:
        raise UsageError("samestep.main: found no script here; in a notebook write samestep.train in its place")
    declare(module_of(file), task, config)  # it may stand under a guard, which nobody who imports the script comes by
    sys.argv = ["samestep", "train", place_of(file), *sys.argv[1:]]
    run_command_line()
