"""The norm in one pass by Triton's interpreter: test_norm_kernels.py starts this in a process with TRITON_INTERPRET=1."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from types import ModuleType
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_norm import by_ranks, plain, some_grads

from samestep.exact import norm, norm_kernels

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered in subtract")  # inf - inf, meant so


@pytest.fixture(scope="module")
def kernels() -> Iterator[ModuleType]:
    """The kernels, where a norm is taken as on a GPU."""
    assert norm.norm_way() == f"in one pass, Triton {norm_kernels.VERSION}"
    with mock.patch.object(norm, "_on_host", return_value=False):
        yield norm_kernels


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=10, deadline=None)
@given(rng=st.randoms(use_true_random=False), ways=st.integers(2, 5))
def test_no_cut_into_rows_and_no_order_changes_the_norm(kernels: ModuleType, rng: random.Random, ways: int) -> None:
    grads = some_grads(rng)
    whole = norm.total_norm(grads)
    assert isinstance(whole, torch.Tensor)
    assert whole == by_ranks(grads, ways, rng)
    assert whole.item() == pytest.approx(plain(grads), rel=1e-6)


def test_a_rows_square_hears_neither_of_the_rows_beside_it_nor_of_where_it_lies(kernels: ModuleType) -> None:
    row = torch.randn(1300, generator=torch.Generator().manual_seed(0))
    alone = kernels.row_bins([row[None]])
    for others in (1, 6):
        for begin in (0, 1, 3):
            memory = torch.zeros(begin + 1300 * (others + 1))
            rows = memory[begin:].view(others + 1, 1300)
            rows[others] = row
            assert torch.equal(kernels.row_bins([torch.zeros(0, 3), rows]), alone)


def test_bins_are_those_of_the_way_without_triton(kernels: ModuleType) -> None:
    """Of numbers that are rows themselves nothing is summed before the bins: the two are the same to the bit."""
    grads = [torch.randn(2000) * 10.0**power for power in range(-3, 4)] + [torch.zeros(3), torch.randn(5).double()]
    with mock.patch.object(norm, "_on_host", return_value=True):
        expected = norm.row_bins(grads)
    assert torch.equal(norm.row_bins(grads), expected)
    assert norm.norm_of(expected) == pytest.approx(math.sqrt(expected.sum().item()), rel=1e-15)


def test_gradients_that_do_not_lie_in_one_piece_are_read_as_they_are(kernels: ModuleType) -> None:
    """The kernels read by address."""
    grad = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    for some in (grad[:, 0], grad[::2], grad[:, ::2], grad[:, :1], grad.t(), torch.ones(1).expand(5), grad[:1].expand(3, 6)):
        assert norm.total_norm([some]) == norm.total_norm([some.clone(memory_format=torch.contiguous_format)])
        assert norm.total_norm([some]).item() == pytest.approx(some.double().norm().item(), rel=1e-12)  # type: ignore[union-attr]


@pytest.mark.parametrize(("value", "expected"), [(math.inf, math.inf), (-math.inf, math.inf), (math.nan, math.nan)])
def test_what_is_not_finite_has_a_norm_too(kernels: ModuleType, value: float, expected: float) -> None:
    for grad in (torch.tensor([1.0, value]), torch.tensor([[1.0, value], [0.0, 1.0]])):
        assert norm.total_norm([grad]).item() == pytest.approx(expected, nan_ok=True)  # type: ignore[union-attr]


def test_where_the_kernels_fail_the_norm_is_taken_without_them(kernels: ModuleType) -> None:
    norm._kernels.cache_clear()
    with mock.patch.object(kernels, "row_bins", side_effect=RuntimeError("no C compiler")):
        assert norm.norm_way() == "by halves"
    norm._kernels.cache_clear()
