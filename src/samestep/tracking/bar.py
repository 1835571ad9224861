"""The bar on a terminal: of a run's numbers those that have room, the most needed first."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from tqdm import tqdm

from samestep.run.colours import coloured
from samestep.run.metric_rows import Row

_CELLS = (10, 40)  # of the bar, at least and at most
_EIGHTHS = " ▏▎▍▌▋▊▉"
_NEEDED = 2  # words that are worth more than the bar, besides the count


def bar_line(width: int, share: float, words: Sequence[str], ascii_only: bool) -> tuple[str, str, str]:
    """What stands before the bar, the bar, and what stands behind it, together at most `width` characters wide.

    Args:
        share: of the run that is done.
        words: the count first, then what is worth less and less; the last of them go first where there is no room.
    """
    count, *behind = words
    while len(behind) > _NEEDED and _cells(width, words[: len(behind) + 1]) < _CELLS[0]:
        behind.pop()
    cells = _cells(width, [count, *behind])
    if cells >= _CELLS[0]:
        return f"{count} |", _drawn(share, min(cells, _CELLS[1]), ascii_only), "| " + "  ".join(behind)
    while behind and len("  ".join([count, *behind])) > width:
        behind.pop()
    return "  ".join([count, *behind])[:width], "", ""


def _drawn(share: float, cells: int, ascii_only: bool) -> str:
    full, eighths = divmod(int(share * cells * 8), 8)
    if ascii_only:
        return "#" * full + "-" * (cells - full)
    return ("█" * full + _EIGHTHS[eighths] * (full < cells)).ljust(cells)


def _cells(width: int, words: Sequence[str]) -> int:
    return width - len("  ".join(words)) - len(" || ") + len("  ")


class Bar(tqdm):  # type: ignore[type-arg]
    """Shows a run's last numbers. tqdm keeps it below what is printed, and asks for its text whenever it draws it.

    Args:
        unit: of the steps' weights.
    """

    def __init__(self, num_steps: int, first_step: int, unit: str) -> None:
        self._state, self._unit, self._num_steps, self._first_step = "starting", unit, num_steps, first_step
        self._first: list[str] = []
        self._evaluation: list[str] = []
        self._last: list[str] = []
        self._begun: float | None = None  # when the first step of this start had been taken: what came before is no pace
        super().__init__(total=num_steps, initial=first_step, dynamic_ncols=True, leave=False)

    def doing(self, state: str) -> None:
        """What the run does now: running, or what keeps it from taking steps."""
        if state == "running" and self._begun is None:
            self._begun = time.monotonic()
        self._state = state
        self.refresh()

    def evaluated(self, words: list[str]) -> None:
        self._evaluation = words
        self.refresh()

    def step(self, row: Row) -> None:
        """Take a row; it is drawn ten times a second at most."""
        step_s, rate = row["step_s"], row[f"{self._unit}_per_s"]
        pace = f"{1 / step_s:,.1f} steps/s" if step_s < 1 else f"{step_s:,.1f} s/step"
        self._first = [f"loss {row['loss']:.4f}", *self._left(row["step"])]
        self._last = [f"{rate:,.0f} {self._unit}/s", pace]
        self.update(row["step"] - self.n)

    def _left(self, step: int) -> list[str]:
        taken = step - self._first_step - 1
        if self._begun is None or taken < 1:
            return []
        left_s = (time.monotonic() - self._begun) / taken * (self._num_steps - step)
        return [f"{self.format_interval(left_s)} left"]

    def __str__(self) -> str:
        state = [] if self._state == "running" else [self._state]
        words = [f"{self.n}/{self._num_steps}", *state, *self._first, *self._evaluation, *self._last]
        width = (self.format_dict["ncols"] or 80) - 1  # some terminals begin a new line after the last column
        before, drawn, behind = bar_line(width, self.n / self._num_steps, words, self.format_dict["ascii"])
        return f"{before}{coloured(drawn, self._state, sys.stderr) if drawn else ''}{behind}"
