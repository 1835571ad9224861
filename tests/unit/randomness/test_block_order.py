"""The order of rows in blocks: every row once an epoch, entered anywhere, one window of blocks at a time."""

from __future__ import annotations

import statistics
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from samestep.randomness.block_order import BlockOrder
from samestep.randomness.order import Integers


def order(sizes: list[int], window: int, seed: int = 0) -> BlockOrder:
    return BlockOrder(np.array(sizes, np.int64), window, seed)


SIZES = st.lists(st.one_of(st.integers(1, 4), st.integers(1, 400)), min_size=1, max_size=40)


@given(
    sizes=SIZES, window=st.integers(1, 50), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 10**6), step=st.integers(1, 99)
)
def test_every_row_comes_once_an_epoch_however_it_is_read(
    sizes: list[int], window: int, seed: int, epoch: int, step: int
) -> None:
    num_rows = sum(sizes)
    whole = order(sizes, window, seed).rows(epoch, 0, num_rows)
    assert np.array_equal(np.sort(whole), np.arange(num_rows))
    one = order(sizes, window, seed)
    starts = list(range(0, num_rows, step))
    parts = {start: one.rows(epoch, start, min(start + step, num_rows)) for start in reversed(starts)}
    assert np.array_equal(np.concatenate([parts[start] for start in starts]), whole)


@given(sizes=SIZES, window=st.integers(1, 9), epoch=st.integers(0, 9))
def test_a_window_is_read_through_before_the_next_and_what_comes_next_is_known(
    sizes: list[int], window: int, epoch: int
) -> None:
    one, owners = order(sizes, window), np.repeat(np.arange(len(sizes)), sizes)
    rows = one.rows(epoch, 0, sum(sizes))
    begun: list[int] = []
    for block in owners[rows].tolist():
        if block not in begun:
            begun.append(block)
    for first in range(0, len(begun), window):
        blocks = set(begun[first : first + window])
        ends = np.flatnonzero(np.isin(owners[rows], list(blocks)))
        assert ends[-1] - ends[0] + 1 == len(ends)  # no other block's row in between
        one.rows(epoch, int(ends[0]), int(ends[0]) + 1)
        following = begun[first + window : first + 2 * window]
        assert set(one.upcoming()[: len(blocks)]) == blocks
        assert not following or set(one.upcoming()[len(blocks) :]) == set(following)


def test_epochs_and_seeds_differ_in_blocks_and_within_windows() -> None:
    def rows(epoch: int, seed: int, sizes: list[int]) -> Integers:
        return order(sizes, 1, seed).rows(epoch, 0, sum(sizes))

    for sizes in ([1] * 64, [64]):  # by their blocks alone, by their rows alone
        found = [rows(0, 0, sizes), rows(1, 0, sizes), rows(0, 1, sizes)]
        assert len({tuple(one.tolist()) for one in found}) == 3


def test_each_row_is_as_likely_at_each_position() -> None:
    sizes, epochs = [1, 3, 2, 5], 1000
    counts = np.zeros((11, 11))
    one = order(sizes, 2, seed=7)
    for epoch in range(epochs):
        counts[np.arange(11), one.rows(epoch, 0, 11)] += 1
    # blocks of other sizes are not as likely everywhere, but a block's own rows are alike, and rows are where their block is
    for start, size in zip(np.cumsum([0, *sizes[:-1]]), sizes, strict=True):
        mine = counts[:, start : start + size]
        expected = mine.mean(1, keepdims=True)
        chi_square = ((mine - expected) ** 2 / np.maximum(expected, 1)).sum()
        freedom = 11 * (size - 1)
        assert chi_square <= freedom + 6 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("sizes", [np.full(10_000, 100_000), np.random.default_rng(0).integers(1, 200_000, 10_000)])
def test_a_billion_rows_in_ten_thousand_blocks_are_entered_anywhere_at_once(sizes: Integers) -> None:
    one = BlockOrder(sizes, 16, seed=5)
    assert abs(one.num_rows - 10**9) < 2 * 10**7
    places = np.random.default_rng(1).integers(0, one.num_rows - 8, 60).tolist()
    tracemalloc.start()
    taken_s = []
    for epoch, place in enumerate(places):
        began = time.perf_counter()
        rows = one.rows(epoch // 2, place, place + 8)
        taken_s.append(time.perf_counter() - began)
        assert len(set(rows.tolist())) == 8
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert statistics.median(taken_s) < 0.05  # a generous bound: bench/data.py has the figure
    assert peak < 4 * 2**20
