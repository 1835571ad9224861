"""The rows of metrics.jsonl: as text, the last of them, and what of one two runs of a config have in common."""

from __future__ import annotations

import collections
import json
import math
import os
from typing import Any

from samestep.run.paths import RunPaths

Row = dict[str, Any]

_TAIL_BYTES = 65_536
_MEASURED = {"time", "step_s", "data_wait_s", "peak_memory_bytes", "mfu"}


def as_line(row: Row) -> str:
    """A row as JSON, which has no word for what is not a number."""
    known = {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}
    return json.dumps(known) + "\n"


def parsed(line: str | bytes) -> Row | None:
    """None for half a line, the last of a killed process."""
    try:
        row: Row = json.loads(line)
    except ValueError:
        return None
    return row


def timeless(row: Row) -> Row:
    """The row without what the clock and the machine say."""
    return {key: value for key, value in row.items() if key not in _MEASURED and not key.endswith("_per_s")}


def last_rows(folder: RunPaths, most: int) -> list[Row]:
    """The last rows of a run, at most so many; none if it has none yet. The file may be long: its end alone is read."""
    tail_bytes = _TAIL_BYTES
    while True:
        try:
            with folder.metrics.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - tail_bytes))
                lines = collections.deque(file.read().splitlines(), maxlen=most + 1)
        except OSError:
            return []
        rows = [row for line in lines if (row := parsed(line)) is not None]  # the first and the last may not be whole
        if rows or tail_bytes >= size:
            return rows[-most:]
        tail_bytes *= 16
