"""A script as its own config: what stands in its `samestep.main(Mine, steps=200, …)`, read by importing it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from samestep.errors import UsageError
from samestep.task import Task
from samestep.task.loading import load_module

_declared: dict[str, tuple[dict[str, Any], dict[str, str]]] = {}  # by module


def declare(task: type[Task] | Task, values: dict[str, Any]) -> None:
    """Note what a script's `samestep.main` was called with, for whoever imports the script as a config."""
    kind = task if isinstance(task, type) else type(task)
    tree = described(task, values)
    short = {name: f"with.{name}" for name in kind.model_fields}
    _declared[kind.__module__] = tree, {"lr": "optimizer.lr", **short}


def described(task: type[Task] | Task, values: dict[str, Any]) -> dict[str, Any]:
    """A config's values: those given, the task by its class's name, and the fields that are set."""
    fields = {} if isinstance(task, type) else task.model_dump(exclude_unset=True)
    kind = task if isinstance(task, type) else type(task)
    return {"task": kind.__name__, **({"with": fields} if fields else {}), **values}


def place_of(file: str | Path) -> str:
    """A file as it would be typed here: a relative path if it is below this folder."""
    return os.path.relpath(file) if Path(file).resolve().is_relative_to(Path.cwd()) else str(file)


def read_script(path: Path, shown: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The config of a script, as plain values, and what its keys may be called for short: `lr`, and the task's fields.

    Raises UsageError if it calls no `samestep.main`.
    """
    module = load_module(str(path))
    if module.__name__ not in _declared:
        raise UsageError(
            f"{shown}: it calls no samestep.main; write samestep.main(YourTask, steps=…, global_batch_size=…) as its last "
            "line, or name a YAML file"
        )
    tree, short = _declared[module.__name__]
    return {**tree, "task": f"{shown}:{tree['task']}"}, short
