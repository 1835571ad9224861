"""samestep: a training run is a pure function of its config."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from samestep import exact
    from samestep.cli.main_call import main
    from samestep.commands.load import load
    from samestep.commands.spawn import train
    from samestep.runtime.version import __version__
    from samestep.sources import Tokens
    from samestep.sources.mix import Mix
    from samestep.sources.parquet.source import Parquet
    from samestep.task import Task, mean, step

__all__ = ["Mix", "Parquet", "Task", "Tokens", "__version__", "exact", "load", "main", "mean", "step", "train"]

_PLACES = {
    "Mix": "samestep.sources.mix",
    "Parquet": "samestep.sources.parquet",
    "Task": "samestep.task",
    "Tokens": "samestep.sources",
    "__version__": "samestep.runtime.version",
    "load": "samestep.commands.load",
    "main": "samestep.cli.main_call",
    "mean": "samestep.task",
    "step": "samestep.task",
    "train": "samestep.commands.spawn",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: `samestep --help` must not wait for torch."""
    if name == "exact":
        return importlib.import_module("samestep.exact")
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'samestep' has no attribute {name!r}")
