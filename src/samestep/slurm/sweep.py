"""A sweep: which overrides the runs of a job array have."""

from __future__ import annotations

import itertools
import json
import shlex
from pathlib import Path

from samestep.config import parse_yaml, read_text
from samestep.errors import UsageError


def points(file: Path) -> list[list[str]]:
    """The overrides of each run of a sweep, from a grid in YAML or from a line of key=value for each.

    Raises UsageError for a file that is neither.
    """
    text = read_text(file, file)
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if file.suffix not in (".yaml", ".yml"):
        try:
            found = [shlex.split(line) for line in lines]
        except ValueError as error:
            raise UsageError(f"{file}: a line cannot be read ({error}); write key=value words, a line for each run") from None
        wrong = [word for words in found for word in words if "=" not in word]
        if wrong or not found:
            raise UsageError(f"{file}: found {wrong[0] if wrong else 'no line'}; write key=value words, a line for each run")
        return found
    grid = parse_yaml(text, str(file))
    if not isinstance(grid, dict) or not all(isinstance(values, list) and values for values in grid.values()):
        raise UsageError(f"{file}: found no grid; write a list of values for each key, optimizer.lr: [1e-3, 3e-3]")
    return [
        [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in zip(grid, values, strict=True)]
        for values in itertools.product(*grid.values())
    ]


def point(file: Path, index: int) -> list[str]:
    """The overrides of the run with this number, from 0. Raises UsageError if there are fewer."""
    found = points(file)
    if index >= len(found):
        raise UsageError(f"--array: found index {index}, and {file} has {len(found)} runs; write --array=0-{len(found) - 1}")
    return found[index]
