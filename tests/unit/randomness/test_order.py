"""The order of rows is a permutation that can be entered anywhere."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from samestep.randomness import order
from samestep.randomness.order import Draws, Order, permute


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


def test_weighted_rows_come_as_often_as_their_weights_say_and_without_weight_never() -> None:
    weights = np.array([1.0, 0.0, 2.0, 3.0, 0.0] * 2000)
    draws = Draws(weights, seed=3)
    counts = np.bincount(draws.rows(0, 0, len(weights)), minlength=len(weights)).reshape(-1, 5).sum(0)
    assert counts.sum() == 10_000
    assert counts[1] == counts[4] == 0
    expected = 10_000 * np.array([1, 2, 3]) / 6
    assert (abs(counts[[0, 2, 3]] - expected) < 4 * np.sqrt(expected)).all()
    parts = [draws.rows(1, 0, 7), draws.rows(1, 7, 16_000)]  # seeking gives what reading through gives
    assert np.concatenate(parts).tolist() == Draws(weights, seed=3).rows(1, 0, 10_000).tolist()
    assert draws.rows(0, 0, 100).tolist() != draws.rows(1, 0, 100).tolist()


def test_the_last_row_with_a_weight_is_the_last_that_can_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "_mix_array", lambda values, key: np.full(values.shape, np.uint64(2**64 - 1)))
    assert Draws(np.array([0.1] * 10 + [0.0]), seed=0).rows(0, 0, 3).tolist() == [9, 9, 9]
