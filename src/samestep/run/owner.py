"""The one owner of a run's folder: its lock, and the wait for an owner that is on its way out."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from samestep.errors import Stopped, UsageError

_WAIT_S = 60.0
_LEAST_S = 5.0
_LOOKED_EVERY_S = 0.2
_ROWS_OF_A_LIVING_OWNER = 4  # one that was told to stop writes no more than those of a step or two, and an evaluation's
_TAKEN = (errno.EACCES, errno.EAGAIN)


def lock(handle: int) -> bool:
    """Whether this process has the lock now. OSError of another number where the file system has none."""
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        raise
    return True


def wait_for_lock(handle: int, path: Path, rows: Path, is_asked_to_stop: Callable[[], bool]) -> None:
    """Take the lock of a run that may have an owner, who is named at once.

    One that is dying may save first: it is waited for. One that goes on writing rows lives, and is not.

    Args:
        handle: of the file that is locked, and has the owner's words.
        path: of the run's folder.
        rows: the file that a living owner adds rows to.

    Raises:
        UsageError: the owner lives.
        Stopped: somebody wants to wait no more.
    """
    begun, told, written, sizes = time.monotonic(), "", 0, _size(rows)
    while not lock(handle):
        owner = os.pread(handle, 4096, 0).decode(errors="replace").strip() or "another process"
        waited_s, size = time.monotonic() - begun, _size(rows)
        written, sizes = written + (size != sizes), size
        if waited_s > _WAIT_S or (written >= _ROWS_OF_A_LIVING_OWNER and waited_s > _LEAST_S):
            raise UsageError(f"{path}: this run is owned by {owner}, which is alive; end it, or write another --run NAME")
        if is_asked_to_stop():
            raise Stopped(f"stopped while it waited for {path}, which {owner} has; the same line tries again")
        if owner != told:
            told = owner
            with contextlib.suppress(OSError):
                print(
                    f"{path}: {owner} has this run; waiting for its end, {_WAIT_S:.0f} s at most", file=sys.stderr, flush=True
                )
        time.sleep(_LOOKED_EVERY_S)


def _size(file: Path) -> int:
    with contextlib.suppress(OSError):
        return file.stat().st_size
    return 0
