"""metrics.jsonl, which every run has: one row for each tracked step, whatever was killed."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable

from samestep.run.disk import write_atomically
from samestep.run.folder import RunFolder
from samestep.run.metric_rows import Row, as_line, parsed


def cut_back(folder: RunFolder, step: int, latest: list[Row], evaluates_again: bool) -> None:
    """Leave out the rows after a step: a killed run had gone further than its checkpoint, and will get there again.

    Args:
        latest: the checkpoint's own last rows; those that the file lacks are added, for whoever was to write them died.
        evaluates_again: the evaluation after that step is still to come: a start that died meanwhile has made it already.
    """

    def stays(row: Row) -> bool:
        return bool(row["step"] < step or (row["step"] == step and ("loss" in row or not evaluates_again)))

    lines = folder.metrics.read_text().splitlines() if folder.metrics.exists() else []
    oldest = min([step, *(row["step"] for row in latest)])
    first = len(lines)
    while first and ((row := parsed(lines[first - 1])) is None or row["step"] >= oldest):
        first -= 1
    kept, present = lines[:first], set()  # rows stand in order: those before stay, and there may be millions
    for line in lines[first:]:
        if (row := parsed(line)) is not None and stays(row):
            kept.append(line)
            present.add((row["step"], "loss" in row))
    kept += [as_line(row).rstrip() for row in latest if stays(row) and (row["step"], "loss" in row) not in present]
    if not lines and not kept:
        return
    write_atomically(folder.metrics, "\n".join([*kept, ""]))


class Metrics:
    """metrics.jsonl: one row for each tracked step, written whole and at once; what finds no room waits for the next row."""

    def __init__(self, folder: RunFolder, warn: Callable[[str], None]) -> None:
        self._handle = os.open(folder.metrics, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._size = os.fstat(self._handle).st_size
        self._waiting: list[bytes] = []
        self._warn, self._has_warned = warn, False

    def row(self, values: Row) -> None:
        self._waiting.append(as_line(values).encode())
        self._write()

    def _write(self) -> None:
        data = b"".join(self._waiting)
        try:
            written = os.write(self._handle, data)
            if written < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            os.ftruncate(self._handle, self._size)  # half a row of this process's own
            if not self._has_warned:
                self._warn(f"WARNING: metrics.jsonl could not be written ({error.strerror}); its rows wait for room")
            self._has_warned = True
            return
        self._size += len(data)
        self._waiting.clear()
        self._has_warned = False

    def close(self, patience_s: float) -> None:
        if self._waiting:
            self._write()
        if self._waiting:
            self._warn(
                f"WARNING: metrics.jsonl lacks its last {len(self._waiting)} rows; the next checkpoint carries some of them"
            )
        with contextlib.suppress(OSError):
            os.fsync(self._handle)
        os.close(self._handle)
