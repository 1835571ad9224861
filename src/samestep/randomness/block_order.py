"""The order of rows that lie in blocks, of data that is read a block at a time: arithmetic too, and every row once an epoch.

Two levels: the blocks are permuted and dealt into windows of so many, and the rows of a window are permuted among themselves
(`permute`). A reader needs the blocks of one window at a time. Seeking takes a binary search over prefix sums; an epoch's
deal is sorted when the epoch is first entered, 0.4 ms for 10,000 blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from samestep.randomness.mixing import mix
from samestep.randomness.order import Integers, Order, mixed

_DEALING, _WITHIN = 1, 2  # sets apart what the two levels are keyed with
_EPOCHS_KEPT = 2  # an epoch's last step and the next one's first, and what is read ahead
_WINDOWS_KEPT = 2


@dataclass(frozen=True)
class _Deal:
    """An epoch's blocks in their order, and the position at which each of its windows ends."""

    blocks: Integers
    ends: Integers


class _Window(Order):
    """The rows of some blocks, in their order among themselves."""

    WINDOW = 1 << 9  # positions permuted at a time: entering a window takes a fifth of a millisecond

    def __init__(self, starts: Integers, sizes: Integers, seed: int) -> None:
        super().__init__(int(sizes.sum()), seed)
        self._begins = np.cumsum(sizes) - sizes
        self._shifts = starts - self._begins

    def _at(self, positions: Integers, epoch: int) -> Integers:
        places = super()._at(positions, epoch)
        rows: Integers = places + self._shifts[np.searchsorted(self._begins, places, side="right") - 1]
        return rows


class BlockOrder(Order):
    """
    Args:
        sizes: (blocks,) how many rows each has, one at least. Rows are numbered through all of them.
        window: how many blocks are mixed with each other.
    """

    def __init__(self, sizes: Integers, window: int, seed: int) -> None:
        super().__init__(int(sizes.sum()), seed)
        self._sizes, self._window_blocks = sizes, window
        self._starts = np.cumsum(sizes) - sizes
        self._deals: dict[int, _Deal] = {}
        self._windows: dict[tuple[int, int], _Window] = {}
        self._last = (-1, 0)  # the epoch and the window last asked for, and where that begins and ends
        self._first = self._end = 0

    def rows(self, epoch: int, start: int, stop: int) -> Integers:
        stop = min(stop, self.num_rows)
        if self._last[0] == epoch and self._first <= start and stop <= self._end:
            return self._windows[self._last].rows(epoch, start - self._first, stop - self._first)
        ends = self._deal(epoch).ends
        parts = []
        while start < stop:
            window = int(np.searchsorted(ends, start, side="right"))
            self._first, self._end = int(ends[window - 1]) if window else 0, int(ends[window])
            end = min(stop, self._end)
            parts.append(self._within(epoch, window, start - self._first, end - self._first))
            start = end
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, np.int64), *parts])

    def upcoming(self) -> list[int]:
        """The blocks of the window that was last asked for, and of the one after it; none before the first."""
        epoch, window = self._last
        if epoch < 0:
            return []
        following = (epoch, window + 1) if window + 1 < len(self._deal(epoch).ends) else (epoch + 1, 0)
        return [*self._blocks(epoch, window).tolist(), *self._blocks(*following).tolist()]

    def _within(self, epoch: int, window: int, start: int, stop: int) -> Integers:
        self._last = key = (epoch, window)
        if key not in self._windows:
            while len(self._windows) >= _WINDOWS_KEPT:
                del self._windows[next(iter(self._windows))]
            blocks, seed = self._blocks(epoch, window), mix(self.seed, _WITHIN, window)
            self._windows[key] = _Window(self._starts[blocks], self._sizes[blocks], seed)
        return self._windows[key].rows(epoch, start, stop)

    def _blocks(self, epoch: int, window: int) -> Integers:
        first = window * self._window_blocks
        return self._deal(epoch).blocks[first : first + self._window_blocks]

    def _deal(self, epoch: int) -> _Deal:
        if epoch not in self._deals:
            while len(self._deals) >= _EPOCHS_KEPT:
                del self._deals[next(iter(self._deals))]
            keys = mixed(np.arange(len(self._sizes)), mix(self.seed, _DEALING, epoch))  # no two alike: it is a bijection
            blocks = np.argsort(keys)
            ends = np.cumsum(self._sizes[blocks])
            last = len(blocks) - 1
            self._deals[epoch] = _Deal(
                blocks, ends[np.minimum(np.arange(0, last + 1, self._window_blocks) + self._window_blocks - 1, last)]
            )
        return self._deals[epoch]
