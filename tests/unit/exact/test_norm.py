"""The norm of all gradients is one number, however their rows are cut, and in whatever order they are added."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from samestep.exact import Scalar, norm
from samestep.exact.norm import norm_of, row_bins, total_norm
from samestep.optimizer.step import divide_and_clip

SHAPES = [(), (1,), (13,), (2500,), (7, 1), (5, 3), (1, 10), (11, 17, 3), (6, 2, 3, 3), (900, 5), (3, 4099), (0, 4), (2, 0)]
DTYPES = [torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64]


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def some_grads(rng: random.Random) -> list[torch.Tensor]:
    """Of some shapes and dtypes, of sizes far apart, some of them beginning in the middle of a cache line."""
    generator = torch.Generator().manual_seed(rng.randrange(2**32))
    grads = []
    for shape in rng.sample(SHAPES, rng.randint(1, 4)):
        dtype, begin = rng.choice(DTYPES), rng.randrange(3)
        memory = torch.randn(begin + math.prod(shape), generator=generator) * 10.0 ** rng.randint(-3, 3)
        grads.append(memory.to(dtype)[begin:].view(shape))
    return grads


def plain(grads: list[torch.Tensor]) -> float:
    """The definition, a row at a time."""
    squares = []
    for grad in grads:
        wide = grad.float() if grad.dtype in (torch.bfloat16, torch.float16) else grad
        for row in wide.unbind() if grad.dim() else [wide]:
            one = torch.linalg.vector_norm(torch.view_as_real(row) if row.is_complex() else row.reshape(-1)).item()
            squares.append(one * one)
    return math.sqrt(math.fsum(squares))


def cut(grads: list[torch.Tensor], ways: int) -> list[list[torch.Tensor]]:
    """What each of `ways` ranks has: equal ranges of rows, of which the last may be short or empty."""
    ranks: list[list[torch.Tensor]] = [[] for _ in range(ways)]
    for grad in grads:
        rows = grad if grad.dim() else grad.reshape(1)
        size = -(-len(rows) // ways)
        for number, rank in enumerate(ranks):
            rank.append(rows[number * size : (number + 1) * size].clone())
    return ranks


def by_ranks(grads: list[torch.Tensor], ways: int, rng: random.Random) -> Scalar:
    """What the ranks come to, whose bins arrive in any order."""
    ranks = [row_bins(mine) for mine in cut(grads, ways)]
    rng.shuffle(ranks)
    return total_norm(grads[:1], lambda bins: sum(ranks, torch.zeros_like(bins)))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(rng=st.randoms(use_true_random=False), ways=st.integers(2, 9))
def test_any_cut_into_rows_and_any_order_gives_the_same_norm(threads: None, rng: random.Random, ways: int) -> None:
    grads = some_grads(rng)
    whole = total_norm(grads)
    assert whole == plain(grads)
    assert whole == norm_of(row_bins(grads))
    assert whole == by_ranks(grads, ways, rng)


@given(rng=st.randoms(use_true_random=False), ways=st.integers(2, 9))
def test_as_a_gpu_takes_it_no_cut_changes_it_either(rng: random.Random, ways: int) -> None:
    grads = some_grads(rng)
    with mock.patch.object(norm, "_on_host", return_value=False):
        whole = total_norm(grads)
        assert isinstance(whole, torch.Tensor)
        assert whole == by_ranks(grads, ways, rng)
    assert whole.item() == pytest.approx(plain(grads), rel=1e-6)


@given(rows=st.integers(1, 9), width=st.integers(2, 70), seed=st.integers(0, 100))
def test_on_a_gpu_a_rows_norm_does_not_hear_of_the_others(rows: int, width: int, seed: int) -> None:
    grad = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    together = norm._by_halves([grad])
    assert torch.allclose(together, torch.linalg.vector_norm(grad, dim=1))
    assert torch.equal(together, torch.cat([norm._by_halves([row[None]]) for row in grad]))
    assert torch.equal(norm._by_halves([grad, grad]), together.repeat(2))


def test_what_is_taken_in_pieces_gives_the_same_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    grads = [torch.randn(5000), torch.randn(300, 7), torch.randn(3, 1000)]
    whole = total_norm(grads)
    monkeypatch.setattr(norm, "_MOST_ROWS", 100)
    monkeypatch.setattr(norm, "_MOST_NUMBERS", 900)
    assert max(some.numel() for some in norm._rows(grads)) == 1000
    assert total_norm(grads) == whole


def test_a_long_row_alone_has_the_bits_that_it_has_beside_others_on_any_number_of_threads() -> None:
    before, found = torch.get_num_threads(), set()
    for dtype in (torch.float32, torch.float64):
        row = torch.randn(1, 70001, dtype=dtype, generator=torch.Generator().manual_seed(0))
        for number in (1, 2):
            torch.set_num_threads(number)
            found |= {(dtype, total_norm([row])), (dtype, norm._by_kernel(row.repeat(3, 1))[1].item())}
    torch.set_num_threads(before)
    assert len(found) == 2


@pytest.mark.parametrize("few", [0, 10**6], ids=["in bins", "one by one"])
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, math.inf], math.inf),
        ([1.0, -math.inf], math.inf),
        ([math.nan, math.inf], math.nan),
        ([1e200, 1.0], math.inf),  # no float64 holds its square
        ([1e154] * 4, math.inf),  # nor this sum, of squares that it holds
        ([3e-162], math.sqrt(3e-162 * 3e-162)),  # so small that bits are lost, the same ones
        ([0.0, -0.0], 0.0),
        ([3.0, -4.0], 5.0),
        ([2.0**511] * 2, 2.0**511 * math.sqrt(2)),
    ],
)
def test_what_is_not_finite_or_extreme_has_a_norm_too(
    values: list[float], expected: float, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(norm, "_FEW_ROWS", few)
    for shape in [(-1,), (-1, 1), (-1, 2)]:
        grad = torch.tensor(values, dtype=torch.float64)
        found = total_norm([grad.reshape(shape) if shape != (-1, 2) else torch.stack([grad, torch.zeros_like(grad)], 1)])
        assert found == pytest.approx(expected, rel=1e-15, nan_ok=True)
        assert isinstance(found, float)


def test_clipping_by_ranks_is_clipping_in_one() -> None:
    grads = [torch.randn(11, 3), torch.randn(11)]
    ranks = cut(grads, 3)
    bins = sum(row_bins(mine) for mine in ranks)
    assert isinstance(bins, torch.Tensor)
    norms = {divide_and_clip(mine, 3.7, 0.01, lambda _: bins) for mine in ranks}
    assert norms == {divide_and_clip(grads, 3.7, 0.01)}
    for place, grad in enumerate(grads):
        assert torch.equal(torch.cat([mine[place] for mine in ranks]), grad)


@pytest.mark.parametrize("wanted", [(True, False), (True, True), (False, False)])
def test_sums_in_any_order_leave_the_switch_as_it_was(wanted: tuple[bool, bool]) -> None:
    def switch() -> tuple[bool, bool]:
        return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()

    was = switch()
    try:
        torch._C._set_deterministic_algorithms(wanted[0], warn_only=wanted[1])
        row_bins([torch.ones(3, 4)])
        assert switch() == wanted
    finally:
        torch._C._set_deterministic_algorithms(was[0], warn_only=was[1])
