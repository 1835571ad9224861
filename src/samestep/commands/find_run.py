"""What a command on a run is told, looked at before torch is imported: whatever was mistyped is told at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from samestep.errors import UsageError
from samestep.run.folder import RunFolder

if TYPE_CHECKING:
    from samestep.config import Config


def recorded(run: str, overrides: tuple[str, ...] = ()) -> tuple[RunFolder, Config]:
    """A run's folder, and its config with `key=value` laid over it. Raises UsageError for what is wrong with either."""
    folder = RunFolder.found(run)
    from samestep.config import load_config  # what reads a config takes longer to import than to see that there is no run

    return folder, load_config(folder.config, overrides)[0]


def refuse_existing(path: Path) -> None:
    """Raise UsageError if something is there already where a command is to write."""
    if path.exists():
        raise UsageError(f"{path}: it is there already; write another path")
