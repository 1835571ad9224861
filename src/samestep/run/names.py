"""What a run may be called, and which one may have been meant."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

from samestep.errors import UsageError, nearest

_LONGEST_BYTES = 200  # file systems take 255, and temporary names are longer


def default_name(config: str, job: str | None) -> str:
    """A run's name from its config's file, with the job's number, the same after a requeue, or with the time."""
    return f"{stem_of(config)}-{job}" if job else f"{stem_of(config)}-{time.strftime('%Y%m%d-%H%M%S')}"


def stem_of(config: str) -> str:
    """What names a config among others: its file's stem, or the name of the run that it is of."""
    path = Path(config)
    return path.parent.name if path.name == "config.yaml" else path.stem


def check_name(name: str, option: str = "--run") -> None:
    """Raise UsageError for what cannot be the name of a run's folder, which was typed behind `option`."""
    if not re.fullmatch(r"[^/\0]+", name) or name in (".", ".."):
        raise UsageError(f"{option}: found {name!r}; write a name without a slash")
    size = len(os.fsencode(name))
    if size > _LONGEST_BYTES:
        raise UsageError(f"{option}: found a name of {size} bytes; write one of at most {_LONGEST_BYTES}")


def no_such_run(run: str, runs: str) -> UsageError:
    """The line about a run that is neither a path nor a name under `runs`; it names one like it."""
    close = nearest(run, sorted(path.parent.name for path in Path(runs).glob("*/state.json")))
    hint = f"did you mean {close}?" if close else f"write the name of a folder under {runs}, or a path"
    return UsageError(f"{run or 'RUN'}: found no such run; {hint}")
