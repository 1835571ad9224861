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
    path = Path(config)
    stem = path.parent.name if path.name == "config.yaml" else path.stem
    return f"{stem}-{job}" if job else f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}"


def check_name(name: str) -> None:
    """Raise UsageError for what cannot be the name of a run's folder."""
    if not re.fullmatch(r"[^/\0]+", name) or name in (".", ".."):
        raise UsageError(f"--run: found {name!r}; write a name without a slash")
    size = len(os.fsencode(name))
    if size > _LONGEST_BYTES:
        raise UsageError(f"--run: found a name of {size} bytes; write one of at most {_LONGEST_BYTES}")


def no_such_run(run: str, runs: str) -> UsageError:
    """The line about a run that is neither a path nor a name under `runs`; it names one like it."""
    close = nearest(run, sorted(path.parent.name for path in Path(runs).glob("*/state.json")))
    hint = f"did you mean {close}?" if close else f"write the name of a folder under {runs}, or a path"
    return UsageError(f"{run or 'RUN'}: found no such run; {hint}")
