"""The gradient of a step is that of Σ sums / Σ weights over the whole global batch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from samestep.exact import FastSum, OrderedSum, StepExchange
from samestep.optim import divide_and_clip


def token_losses(model: nn.Module, x: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A loss with a weight of its own for each row: rows are sequences of uneven length."""
    mask = (torch.arange(x.shape[1]) < lengths[:, None]).double()
    return (model(x).squeeze(-1).square() * mask).sum(), mask.sum()


@pytest.mark.parametrize("sum_class", [OrderedSum, FastSum])
@pytest.mark.parametrize(("micro_batches", "leaves"), [(1, 1), (4, 4), (6, 3), (5, 5), (4, 1)])
@pytest.mark.parametrize("short", [False, True])
def test_a_step_equals_one_big_batch_in_float64(
    sum_class: type[OrderedSum], micro_batches: int, leaves: int, short: bool
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 7), nn.Tanh(), nn.Linear(7, 1)).double()
    x = torch.randn(4 * micro_batches, 11, 3, dtype=torch.float64)
    lengths = torch.randint(1, 12, (4 * micro_batches,))
    rows = 4 * micro_batches - (5 if short and micro_batches > 2 else 0)  # one micro-batch short, one empty

    ordered = sum_class(model, micro_batches, leaves)
    sums = []
    for index in ordered.share:
        real = max(0, min(4, rows - 4 * index))
        chosen = slice(4 * index, 4 * index + real) if real else slice(0, 4)
        with ordered.micro_batch(index):
            loss, weight = token_losses(model, x[chosen], lengths[chosen])
            ordered.connect(loss, counts=real > 0).backward()
        sums.append((loss, weight) if real else (torch.zeros_like(loss), weight * 0))
    total = StepExchange(micro_batches, leaves, 4, 1, torch.device("cpu")).total(sums, ordered.used, 0)
    divide_and_clip(ordered.finish(total.used), total.weight, None)
    found = [parameter.grad for parameter in model.parameters()]

    model.zero_grad()
    loss, weight = token_losses(model, x[:rows], lengths[:rows])
    (loss / weight).backward()
    assert abs(float(total.loss) - float(loss.detach() / weight)) < 1e-12
    for grad, parameter in zip(found, model.parameters(), strict=True):
        assert grad is not None
        assert parameter.grad is not None
        assert (grad - parameter.grad).abs().max() < 1e-12 * parameter.grad.abs().max()


def test_a_parameter_that_no_micro_batch_used_keeps_no_gradient() -> None:
    model = nn.ModuleList([nn.Linear(2, 1), nn.Linear(2, 1), nn.Linear(2, 1)])
    ordered = OrderedSum(model, 2)
    for index in ordered.share:
        with ordered.micro_batch(index):
            ordered.backward((model[0](torch.ones(1, 2)) + (model[1](torch.ones(1, 2)) if index else 0)).sum())
    ordered.finish()
    assert model[0].weight.grad is not None
    assert model[1].weight.grad is not None
    assert model[2].weight.grad is None


def test_clipping_scales_by_the_norm_of_the_divided_gradient() -> None:
    grads = [torch.tensor([6.0, 8.0]), torch.tensor([0.0])]
    norm = divide_and_clip(grads, torch.tensor(2.0, dtype=torch.float64), clip=1.0)
    assert float(norm) == 5.0
    assert torch.allclose(grads[0], torch.tensor([0.6, 0.8]))
