"""What a run prints: for somebody who may leave before it ends, `| head -1` or a terminal that closes, and for its log."""

from __future__ import annotations

import collections
import contextlib
import io
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_MOST_HELD = 1000  # lines
_FOR_A_TERMINAL = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")  # colours, and moves of the cursor


class _Log:
    """The lines that this process prints: held until there is a run to keep them, from then on appended to its log.

    A line is written at once and whole, by a call of its own, so that the ranks of a machine can share the file.
    """

    def __init__(self) -> None:
        self._held: collections.deque[bytes] = collections.deque(maxlen=_MOST_HELD)
        self._file: int | None = None
        self._prefix = b""

    def open(self, path: Path, prefix: str, title: str) -> None:
        if self._file is not None:
            os.close(self._file)
        self._file, self._prefix = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666), b""
        if title:
            self.line(title.encode())
        self._prefix = prefix.encode()
        while self._held:
            self.line(self._held.popleft())

    def line(self, line: bytes) -> None:
        if self._file is None:
            self._held.append(line)
            return
        with contextlib.suppress(OSError):  # a full disk ends no run
            os.write(self._file, self._prefix + line + b"\n")


class _Lines:
    """What is written to a stream, as a reader of a file wants it: of a line that is written over, as a bar is, the end."""

    def __init__(self, log: _Log) -> None:
        self._log, self._begun, self._is_bar = log, b"", False

    def take(self, data: bytes) -> None:
        *whole, rest = _FOR_A_TERMINAL.sub(b"", data).split(b"\n")
        for part in whole:
            self._add(part)
            if self._begun or not self._is_bar:
                self._log.line(self._begun)
            self._begun, self._is_bar = b"", False
        self._add(rest)

    def _add(self, part: bytes) -> None:
        _over, returned, after = part.rpartition(b"\r")
        if returned:
            self._begun, self._is_bar = after.rstrip(), True
        elif part and self._is_bar:  # something else, printed behind a bar
            self._begun, self._is_bar = part, False
        else:
            self._begun += part


class _Optional(io.FileIO):
    """A stream whose reader may be gone: what cannot be written is dropped, and the next line is tried again."""

    def keep(self, log: _Log) -> None:
        self._lines = _Lines(log)

    def write(self, data: ReadableBuffer) -> int:
        size = memoryview(data).nbytes
        with contextlib.suppress(OSError):
            size = super().write(data)
        self._lines.take(bytes(memoryview(data)[:size]))
        return size


_log: _Log | None = None  # of this process, whose streams it is that are wrapped


def open_closed_streams() -> None:
    """Give stdin, stdout and stderr to /dev/null where they are closed: else the next file opened gets their number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number, which is this one
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


def outlive_readers() -> None:
    """Let no print end the run, whether it is samestep's or the task's own, and hold what is printed for the run's log."""
    global _log
    _log = _Log()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        raw = _Optional(stream.fileno(), "w", closefd=False)
        raw.keep(_log)
        inner = raw if isinstance(stream.buffer, io.RawIOBase) else io.BufferedWriter(raw)  # python -u has no buffer
        settings = {key: getattr(stream, key) for key in ("encoding", "errors", "line_buffering", "write_through")}
        setattr(sys, name, io.TextIOWrapper(inner, **settings))


def keep_printed(path: Path, prefix: str = "", title: str = "") -> None:
    """Append what this process has printed so far, and all that it prints from now on, to a run's log.

    Args:
        prefix: of each of its lines, where several processes write.
        title: a line before them.
    """
    if _log is not None:
        with contextlib.suppress(OSError):
            _log.open(path, prefix, title)
