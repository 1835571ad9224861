"""How far a device has come, which its host does not know: the host runs ahead, and waits for it without a word."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Protocol


class Event(Protocol):
    """As `torch.cuda.Event`."""

    def query(self) -> bool: ...


class Progress:
    """An event at the beginning of each phase of a step: the watchdog's beat asks them, and waits for none.

    A kernel that hangs keeps the next phase from being reached, while the devices of other ranks go on to where they wait for
    this one. So the device that all wait for is named, where the hosts all stand in the same wait.

    Args:
        mark: records an event on the device.
    """

    def __init__(self, mark: Callable[[], Event]) -> None:
        self._mark = mark
        self._marks: collections.deque[tuple[Event, int, str]] = collections.deque()
        self._reached: tuple[int, str] | None = None

    def record(self, step: int, phase: str) -> None:
        """What is queued from here on belongs to `phase` of `step` (from 1)."""
        self._marks.append((self._mark(), step, phase))

    def behind(self) -> tuple[int, str] | None:
        """The step and phase that the device is in while it is behind its host; None while it is not.

        An error of the device's is for the main thread to tell.
        """
        try:
            while self._marks and self._marks[0][0].query():
                _, step, phase = self._marks.popleft()
                self._reached = step, phase
        except RuntimeError:
            return None
        return self._reached if self._marks else None
