"""The order of rows is a permutation that can be entered anywhere."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from samestep.randomness.order import Order, permute


@given(num_rows=st.integers(1, 3000), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 10**6))
def test_every_row_comes_once_an_epoch(num_rows: int, seed: int, epoch: int) -> None:
    rows = permute(np.arange(num_rows), num_rows, seed, epoch)
    assert np.array_equal(np.sort(rows), np.arange(num_rows))


def test_ten_billion_rows_need_no_list() -> None:
    num_rows = 10**10
    positions = np.array([0, 1, 123_456_789, num_rows - 2, num_rows - 1])
    rows = permute(positions, num_rows, seed=3, epoch=5)
    assert len(set(rows.tolist())) == 5
    assert ((rows >= 0) & (rows < num_rows)).all()
    block = permute(np.arange(5 * 10**9, 5 * 10**9 + 100_000), num_rows, seed=3, epoch=5)
    assert len(np.unique(block)) == 100_000
    assert abs(block.mean() / num_rows - 0.5) < 0.01


def test_seeking_gives_what_reading_through_gives() -> None:
    order = Order(50_000, seed=1)
    whole = np.concatenate([order.rows(2, start, min(start + 37, 50_000)) for start in range(0, 50_000, 37)])
    assert np.array_equal(whole, permute(np.arange(50_000), 50_000, 1, 2))
    assert np.array_equal(Order(50_000, seed=1).rows(2, 16_380, 16_390), whole[16_380:16_390])


def test_epochs_and_seeds_differ() -> None:
    first = permute(np.arange(100), 100, 0, 0)
    assert not np.array_equal(first, permute(np.arange(100), 100, 0, 1))
    assert not np.array_equal(first, permute(np.arange(100), 100, 1, 0))


@pytest.mark.parametrize("num_rows", [2, 3, 5, 12, 100])
def test_each_row_is_as_likely_at_each_position(num_rows: int) -> None:
    epochs = 4000
    counts = np.zeros((num_rows, num_rows))
    for epoch in range(epochs):
        counts[np.arange(num_rows), permute(np.arange(num_rows), num_rows, 7, epoch)] += 1
    expected = epochs / num_rows
    chi_square = ((counts - expected) ** 2 / expected).sum()
    freedom = (num_rows - 1) ** 2
    assert chi_square < freedom + 6 * (2 * freedom) ** 0.5
