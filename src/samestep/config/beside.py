"""Files that a config names: looked for in the working folder, and else beside the config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from samestep.run.snapshot import as_kept

_NAME_FILES = ("task", "with", "init", "schedule", "optimizer", "track")


def find_beside(tree: dict[str, Any], folder: Path) -> None:
    """Write the way to a file in place of its name where it is not here and lies in the config's `folder`.

    The resolved config so says which file it was, and a later start from here finds the same one.
    """
    for key in _NAME_FILES:
        if key in tree:
            tree[key] = _found(tree[key], folder)


def _found(value: Any, folder: Path) -> Any:
    if isinstance(value, dict):
        return {key: _found(inner, folder) for key, inner in value.items()}
    if isinstance(value, list):
        return [_found(inner, folder) for inner in value]
    if not isinstance(value, str) or "\0" in value:
        return value
    place, is_code, _ = value.partition(".py:")
    file = Path(f"{place}.py" if is_code else value)
    try:
        is_beside = file.suffix != "" and not as_kept(file).exists() and as_kept(folder / file).is_file()
    except OSError:  # a text too long for a path
        return value
    return str(folder / value) if is_beside else value
