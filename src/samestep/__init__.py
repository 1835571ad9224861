"""samestep: a training run is a pure function of its config."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from samestep import exact
    from samestep.batches import Tokens
    from samestep.batches.mix import Mix
    from samestep.batches.parquet import Parquet
    from samestep.cli.script import main
    from samestep.commands.call import train
    from samestep.commands.load import load
    from samestep.task import Task

__all__ = ["Mix", "Parquet", "Task", "Tokens", "__version__", "exact", "load", "main", "train"]

__version__ = "0.1.0"

_PLACES = {
    "Mix": "samestep.batches.mix",
    "Parquet": "samestep.batches.parquet",
    "Task": "samestep.task",
    "Tokens": "samestep.batches",
    "load": "samestep.commands.load",
    "main": "samestep.cli.script",
    "train": "samestep.commands.call",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: `samestep --help` must not wait for torch."""
    if name == "exact":
        return importlib.import_module("samestep.exact")
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'samestep' has no attribute {name!r}")
