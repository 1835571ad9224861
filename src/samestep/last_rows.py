"""The end of metrics.jsonl, which may be long."""

from __future__ import annotations

import collections
import json
import os
from typing import Any

from samestep.run_folder import RunFolder

_TAIL_BYTES = 65_536


def last_rows(folder: RunFolder, most: int) -> list[dict[str, Any]]:
    """The last rows of a run, at most so many; none if it has none yet."""
    try:
        with folder.metrics.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = collections.deque(file.read().splitlines(), maxlen=most + 1)
    except OSError:
        return []
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except ValueError:  # the first may begin in its middle, the last may not be whole yet
            continue
    return rows[-most:]
