"""The order of rows: a keyed permutation, so that the row at (seed, epoch, position) is arithmetic and never a list.

Memory and seeking are O(1) for any number of rows: resuming in the middle of an epoch computes, and nothing is replayed.
The permutation is a Feistel network over a rectangle a × b that holds the rows, with cycle walking for the few points of
the rectangle beyond them (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002, sections 3 and 4).
"""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray

from samestep.randomness.mixing import mix

Integers = NDArray[np.int64]

_ROUNDS = 8


def _mix_array(values: NDArray[np.uint64], key: int) -> NDArray[np.uint64]:
    values = values + np.uint64(key)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def mixed(numbers: Integers, key: int) -> NDArray[np.uint64]:
    """Each number as well-mixed bits; different numbers stay different."""
    return _mix_array(_mix_array(numbers.astype(np.uint64), key), mix(key))


@functools.lru_cache(maxsize=8)
def _round_keys(seed: int, epoch: int) -> tuple[int, ...]:
    return tuple(mix(seed, epoch, number) for number in range(_ROUNDS))


def permute(positions: Integers, num_rows: int, seed: int, epoch: int) -> Integers:
    """The rows at the given positions (each in [0, num_rows)) of an epoch; a bijection of [0, num_rows)."""
    width = math.isqrt(num_rows - 1) + 1 if num_rows > 1 else 1
    height = -(-num_rows // width)
    keys = _round_keys(seed, epoch)
    points = _feistel(positions.astype(np.uint64), width, height, keys)
    outside = points >= num_rows
    while outside.any():  # fewer than `width` points lie outside, so this hardly ever turns twice
        points[outside] = _feistel(points[outside], width, height, keys)
        outside = points >= num_rows
    return points.astype(np.int64)


def _feistel(points: NDArray[np.uint64], width: int, height: int, keys: tuple[int, ...]) -> NDArray[np.uint64]:
    across, down = np.uint64(width), np.uint64(height)
    low, high = points % across, points // across
    for number, key in enumerate(keys):
        if number % 2 == 0:
            low = (low + _mix_array(high, key) % across) % across
        else:
            high = (high + _mix_array(low, key) % down) % down
    return high * across + low


class Order:
    """The rows of each epoch in their shuffled order, read through a small window so that one step costs a slice."""

    WINDOW = 1 << 14

    def __init__(self, num_rows: int, seed: int) -> None:
        self.num_rows = num_rows
        self.seed = seed
        self._window: tuple[int, int] | None = None
        self._rows: Integers = np.empty(0, np.int64)

    def rows(self, epoch: int, start: int, stop: int) -> Integers:
        """The rows at positions start to stop of an epoch, as a fresh or read-only array of shape (stop - start,)."""
        number, last = start // self.WINDOW, (stop - 1) // self.WINDOW
        if number != last or stop > self.num_rows:
            return self._at(np.arange(start, min(stop, self.num_rows)), epoch)
        if self._window != (epoch, number):
            first = number * self.WINDOW
            positions = np.arange(first, min(first + self.WINDOW, self.num_rows))
            self._rows, self._window = self._at(positions, epoch), (epoch, number)
        offset = number * self.WINDOW
        return self._rows[start - offset : stop - offset]

    def _at(self, positions: Integers, epoch: int) -> Integers:
        return permute(positions, self.num_rows, self.seed, epoch)


class Draws(Order):
    """As many draws an epoch as there are rows, with replacement, each row as often as its weight says; arithmetic too.

    Args:
        weights: (rows,) of finite numbers from 0 on, of which one at least is more; it takes 8 bytes a row.
    """

    def __init__(self, weights: NDArray[np.float64], seed: int) -> None:
        super().__init__(len(weights), seed)
        self._below = np.cumsum(weights, dtype=np.float64)
        self._last = int(np.flatnonzero(weights)[-1])

    def rows(self, epoch: int, start: int, stop: int) -> Integers:
        places = np.arange(start, min(stop, self.num_rows)).astype(np.uint64)
        first, second = _round_keys(self.seed, epoch)[:2]
        drawn = (_mix_array(_mix_array(places, first), second) >> np.uint64(11)) * 2.0**-53  # in [0, 1)
        found: Integers = np.searchsorted(self._below, drawn * self._below[-1], side="right").astype(np.int64)
        return np.minimum(found, self._last)  # the product may round up to the sum of all
