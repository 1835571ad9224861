"""A run that is there, found and read before torch is imported: whatever was mistyped is told at once."""

from __future__ import annotations

from samestep.config import Config, load_config
from samestep.run.folder import RunFolder


def recorded(run: str, overrides: tuple[str, ...] = ()) -> tuple[RunFolder, Config]:
    """A run's folder, and its config with `key=value` laid over it. Raises UsageError for what is wrong with either."""
    folder = RunFolder.found(run)
    return folder, load_config(folder.config, overrides)[0]
