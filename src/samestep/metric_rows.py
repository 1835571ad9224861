"""A row of metrics.jsonl: as text, and what of it two runs of one config have in common."""

from __future__ import annotations

import json
import math
from typing import Any

Row = dict[str, Any]

_MEASURED = {"time", "step_s", "data_wait_s", "peak_memory_bytes", "mfu"}


def as_line(row: Row) -> str:
    """A row as JSON, which has no word for what is not a number."""
    known = {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}
    return json.dumps(known) + "\n"


def parsed(line: str) -> Row | None:
    """None for half a line, the last of a killed process."""
    try:
        row: Row = json.loads(line)
    except ValueError:
        return None
    return row


def timeless(row: Row) -> Row:
    """The row without what the clock and the machine say."""
    return {key: value for key, value in row.items() if key not in _MEASURED and not key.endswith("_per_s")}
