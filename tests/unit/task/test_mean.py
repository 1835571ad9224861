"""A mean by its name."""

from __future__ import annotations

import pytest
import torch

import samestep
from samestep.errors import UsageError


def test_a_mean_is_a_sum_and_what_counts() -> None:
    losses = torch.tensor([[1.0, 2.0], [4.0, float("nan")]], requires_grad=True)
    total, weight = samestep.mean(losses[:1])
    assert (total.item(), weight) == (3.0, 2)
    for mask in (torch.tensor([[True, True], [True, False]]), torch.tensor([[1, 1], [1, 0]])):
        total, weight = samestep.mean(losses, mask)
        assert (total.item(), float(weight)) == (7.0, 3.0)
        (gradient,) = torch.autograd.grad(total, losses)
        assert gradient.tolist() == [[1.0, 1.0], [1.0, 0.0]]
    total, weight = samestep.mean(losses, torch.tensor([[0.5, 2.0], [0.25, 0.0]]))
    assert (total.item(), float(weight)) == (5.5, 2.75)


def test_a_mean_of_means_is_refused() -> None:
    with pytest.raises(UsageError, match=r"samestep\.mean: found a loss that is reduced already; write reduction='none'"):
        samestep.mean(torch.tensor(1.0))
    with pytest.raises(UsageError, match=r"found a mask of shape \(2,\) for losses of shape \(2, 3\); write one of the same"):
        samestep.mean(torch.ones(2, 3), torch.ones(2))
