"""The sources as they were when a job was submitted: what is edited while it waits does not leak in."""

from __future__ import annotations

import os
from pathlib import Path


def kept_code() -> Path | None:
    """The folder where `samestep submit` kept the working folder's sources for this process; None without it."""
    found = os.environ.get("SAMESTEP_CODE")
    return Path(found) if found else None


def as_kept(path: str | Path) -> Path:
    """The file as it was kept, or itself where nothing was."""
    code, file = kept_code(), Path(path)
    if code is None or not file.absolute().is_relative_to(Path.cwd()):
        return file
    kept = code / file.absolute().relative_to(Path.cwd())
    return kept if kept.is_file() else file
