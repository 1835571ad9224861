"""The colour of a run's state, where a terminal shows it."""

from __future__ import annotations

import os
import sys
from typing import TextIO

_GREEN, _CYAN, _YELLOW, _RED = 32, 36, 33, 31
_COLOURS = {"done": _GREEN, "failed": _RED, "died": _RED, "running": _CYAN, "evaluating": _CYAN, "saving": _CYAN}
_COLOURS |= dict.fromkeys(("starting", "stopping", "stopped", "queued"), _YELLOW)


def coloured(words: str, state: str, stream: TextIO | None = None) -> str:
    """`words` in the colour of a state, if `stream` (by default stdout) is a terminal with colours and NO_COLOR is not set."""
    if not (stream or sys.stdout).isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return words
    return f"\033[{_COLOURS[state]}m{words}\033[0m"
