"""Whether rows are waited for that a store has not given yet: said by whoever reads, heard by the watchdog."""

from __future__ import annotations

import mmap
import time


class StoreWait:
    """A moment in memory that a rank shares with the loader processes forked off it."""

    def __init__(self) -> None:
        self._until = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("d")

    def expect(self, within_s: float) -> None:
        """An attempt has failed, or brought a part; the next is over within so many seconds."""
        self._until[0] = max(self._until[0], time.monotonic() + within_s)

    def is_first_told(self) -> bool:
        """Whether this rank is about to speak of it for the first time."""
        is_first, self._until[1] = not self._until[1], 1.0
        return is_first

    @property
    def is_on(self) -> bool:
        return time.monotonic() < self._until[0]


store_wait = StoreWait()
