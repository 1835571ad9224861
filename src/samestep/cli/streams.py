"""What a run prints goes to somebody who may leave before it ends: `| head -1`, `>&-`, a terminal that closes."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class _Optional(io.FileIO):
    """A stream whose reader may be gone: what cannot be written is dropped, and the next line is tried again."""

    def write(self, data: ReadableBuffer) -> int:
        with contextlib.suppress(OSError):
            return super().write(data)
        return memoryview(data).nbytes


def open_closed_streams() -> None:
    """Give stdin, stdout and stderr to /dev/null where they are closed: else the next file opened gets their number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number, which is this one
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


def outlive_readers() -> None:
    """Let no print end the run, whether it is samestep's or the task's own."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        raw = _Optional(stream.fileno(), "w", closefd=False)
        inner = raw if isinstance(stream.buffer, io.RawIOBase) else io.BufferedWriter(raw)  # python -u has no buffer
        settings = {key: getattr(stream, key) for key in ("encoding", "errors", "line_buffering", "write_through")}
        setattr(sys, name, io.TextIOWrapper(inner, **settings))
