"""The gradient of a step is that of Σ sums / Σ weights over the whole global batch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from samestep.errors import UsageError
from samestep.exact import FastSum, OrderedSum, StepExchange, buckets
from samestep.exact.route import Route
from samestep.optimizer.step import divide_and_clip


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
    exchange = StepExchange([range(micro_batches)], micro_batches, 4, torch.device("cpu"))
    for index in ordered.share:
        real = max(0, min(4, rows - 4 * index))
        chosen = slice(4 * index, 4 * index + real) if real else slice(0, 4)
        with ordered.micro_batch(index):
            loss, weight = token_losses(model, x[chosen], lengths[chosen])
            exchange.add(loss, weight, {"twice": (loss * 2, weight)}, counts=real > 0)
            ordered.connect(loss, counts=real > 0).backward()
    total = exchange.total(ordered.used, lambda: 0)
    divide_and_clip(ordered.finish(total.used), total.weight, None)
    found = [parameter.grad for parameter in model.parameters()]

    model.zero_grad()
    loss, weight = token_losses(model, x[:rows], lengths[:rows])
    (loss / weight).backward()
    assert abs(float(total.loss) - float(loss.detach() / weight)) < 1e-12
    assert total.numbers == {"twice": 2 * float(total.loss)}
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


def test_a_scalars_gradient_is_divided_the_same_on_every_device() -> None:
    values = torch.rand(100).unbind()
    on_host, on_device = ([value.clone() for value in values] for _ in range(2))
    divide_and_clip(on_host, 3.7, clip=None)
    divide_and_clip(on_device, torch.tensor(3.7, dtype=torch.float64), clip=None)
    assert torch.equal(torch.stack(on_host), torch.stack(on_device))
    assert torch.equal(torch.stack(on_host), (torch.stack(values).double() / 3.7).float())


@pytest.mark.parametrize("on_host", [True, False], ids=["as on a CPU", "as on a GPU"])
def test_a_steps_losses_and_weights_are_summed_in_float64(on_host: bool) -> None:
    loss, many = torch.tensor(1 + 2.0**-40, dtype=torch.float64), 2**24 + 1
    exchange = StepExchange([range(2)], 2, 0, torch.device("cpu"))
    exchange._on_host = on_host
    cases: list[tuple[torch.Tensor | float, torch.Tensor | float]]
    cases = [(torch.tensor(many), torch.tensor(1)), (many, 1.0), (torch.tensor(many), 1)]
    cases.append((torch.tensor(float(many), dtype=torch.float64, requires_grad=True) * 1, 1))
    for one, other in cases:
        for weight in (one, other):
            exchange.add(loss, weight, {}, counts=True)
        total = exchange.total([], lambda: 0)
        assert float(total.weight) == many + 1
        assert float(total.loss) == 2 * (1 + 2.0**-40) / (many + 1)


@pytest.mark.parametrize("leaves", [1, 2])
def test_only_what_the_optimizer_has_is_summed_and_no_other_gradient_stays(leaves: int) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    ordered = OrderedSum(model, 2, leaves, stepped=model[1].parameters())
    for index in ordered.share:
        with ordered.micro_batch(index):
            ordered.backward(model(torch.ones(1, 2)).sum())
    grads = ordered.finish()
    assert [id(grad) for grad in grads] == [id(model[1].weight.grad), id(model[1].bias.grad)]
    assert model[0].weight.grad is None
    assert model[0].bias.grad is None


def test_buckets_go_out_in_one_order_whichever_is_full_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "_FIRST_BYTES", 1)
    monkeypatch.setattr(buckets, "_BYTES", 1)
    parameters = [nn.Parameter(torch.tensor([float(number)])) for number in range(1, 5)]
    sent: list[float] = []

    def note(route: Any, index: int, flat: torch.Tensor, blocks: Any, companion: Any) -> Iterator[None]:
        sent.append(flat.item())
        yield

    def fold(bucket: buckets.Bucket) -> list[list[torch.Tensor]]:
        bucket.flat.copy_(parameters[bucket.places[0]].detach())
        return []

    exchange = buckets.BucketExchange(parameters, Route(1, 0, 1, None), fold, note)
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]):
        exchange.arm()
        value = torch.ones(1)
        for place in reversed(order):  # whose gradient comes first is the last to be multiplied
            value = value * parameters[place]
        value.backward()
        exchange.drain()
        assert sent == [4.0, 3.0, 2.0, 1.0]
        sent.clear()


@pytest.mark.parametrize("on_host", [True, False], ids=["as on a CPU", "as on a GPU"])
def test_a_losss_own_numbers_are_summed_as_it_is_and_one_without_weight_is_nan(on_host: bool) -> None:
    exchange = StepExchange([range(3)], 3, 0, torch.device("cpu"))
    exchange._on_host = on_host
    for value, counts in ((1.0, True), (2.0, True), (float("nan"), False)):  # the last has no rows of its own
        numbers = {"half": (torch.tensor(value), 4), "none": (torch.tensor(0.0), 0)}
        exchange.add(torch.tensor(value), 2, numbers, counts)
    total = exchange.total([], lambda: 0)
    assert (float(total.loss), float(total.numbers["half"])) == (0.75, 0.375)
    assert math.isnan(float(total.numbers["none"]))


def test_other_numbers_in_another_micro_batch_and_names_that_are_taken_are_refused() -> None:
    exchange = StepExchange([range(2)], 2, 0, torch.device("cpu"))
    exchange.add(torch.tensor(1.0), 2, {"a": (torch.tensor(1.0), 1), "c": (torch.tensor(3.0), 1)}, True)
    exchange.add(torch.tensor(1.0), 2, {"c": (torch.tensor(3.0), 1), "a": (torch.tensor(1.0), 1)}, True)
    assert exchange.total([], lambda: 0).numbers == {"a": 1.0, "c": 3.0}  # in whatever order they come
    with pytest.raises(UsageError, match="the numbers b for one micro-batch and a, c for another; return the same"):
        exchange.add(torch.tensor(1.0), 2, {"b": (torch.tensor(1.0), 1)}, True)
    for name in ("lr", "eval_loss", "rows_per_s"):
        with pytest.raises(UsageError, match=f"'{name}' as the name of a number, which is taken"):
            StepExchange([range(2)], 2, 0, torch.device("cpu")).add(torch.tensor(1.0), 2, {name: (torch.tensor(1.0), 1)}, True)
