"""A script as its own config: what stands in its `samestep.main(Mine, steps=200, …)`, read by importing it.

Where that stands under `if __name__ == "__main__":`, the lines there are run once more in each process but the script's own, up
to the call, as if the script had been started without arguments.
"""

from __future__ import annotations

import ast
import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from samestep.errors import UsageError
from samestep.task import Task
from samestep.task.loading import TASK_MODULE, load_module, raised_in

_declared: dict[str, tuple[dict[str, Any], dict[str, str]]] = {}  # by module


def declare(module: str, task: type[Task] | Task, values: dict[str, Any]) -> None:
    """Note what a script's `samestep.main` was called with, for whoever imports the script as a config."""
    kind = task if isinstance(task, type) else type(task)
    tree = described(task, values)
    short = {name: f"with.{name}" for name in kind.model_fields}
    _declared[module] = tree, {"lr": "optimizer.lr", **short}


def module_of(file: str | Path) -> str:
    """What a script is called where it is imported as a config."""
    return f"{TASK_MODULE}{Path(file).stem}"


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
        _run_guarded(module, shown)
    if module.__name__ not in _declared:
        raise UsageError(
            f"{shown}: it calls no samestep.main; write samestep.main(YourTask, steps=…, global_batch_size=…) as its last "
            "line, or name a YAML file"
        )
    tree, short = _declared[module.__name__]
    return {**tree, "task": f"{shown}:{tree['task']}"}, short


def _run_guarded(module: ModuleType, shown: str) -> None:
    """Run what stands under a script's guard, until `samestep.main` has been called."""
    path = Path(str(module.__file__))  # of a submitted job, the file as it was kept
    guarded = [line for node in ast.parse(path.read_text()).body if _is_guard(node) for line in node.body]  # type: ignore[attr-defined]
    with _without_arguments(path):
        for line in guarded:
            try:
                exec(compile(ast.Module([line], []), str(path), "exec"), vars(module))
            except (Exception, SystemExit) as error:
                raise raised_in("task", shown, error) from None
            if module.__name__ in _declared:
                return


def _is_guard(node: ast.stmt) -> bool:
    """Whether it is `if __name__ == "__main__":`, either way round."""
    if not (isinstance(node, ast.If) and isinstance(node.test, ast.Compare) and len(node.test.ops) == 1):
        return False
    sides = {ast.unparse(node.test.left), *map(ast.unparse, node.test.comparators)}
    return isinstance(node.test.ops[0], ast.Eq) and sides == {"__name__", "'__main__'"}


@contextlib.contextmanager
def _without_arguments(path: Path) -> Iterator[None]:
    before, sys.argv = sys.argv, [str(path)]
    try:
        yield
    finally:
        sys.argv = before
