"""Writes into a parameter are found in every step, wherever it lies: what counts them is the host's."""

from __future__ import annotations

import re
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from samestep.checks.purity import Purity
from samestep.errors import UsageError


class OnGpu(torch.nn.Parameter):
    """A stand-in: it lies on the CPU, and says that it does not."""

    is_cuda = True


def watched(model: torch.nn.Module) -> Purity:
    """The watch over a model in a step that is not chosen, with all of its parameters on a GPU."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, OnGpu(parameter.detach()))
    gradients: Any = SimpleNamespace(share=range(1), loss=None)
    schedule: Any = SimpleNamespace(is_chosen=lambda step: False)
    nothing: Any = SimpleNamespace()
    task: Any = SimpleNamespace(__pydantic_private__=None)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    purity = Purity(task, model, optimizer, nothing, gradients, 0, schedule)
    purity.begin_micro_batch(5, SimpleNamespace(index=0))  # type: ignore[arg-type]
    return purity


def lay_out_anew(parameters: Iterable[torch.nn.Parameter]) -> None:
    """As flatten_parameters() does it with cuDNN: the same numbers, elsewhere."""
    with torch.no_grad():
        for parameter in parameters:
            parameter.set_(parameter.detach().clone())  # type: ignore[call-overload]


def test_an_untouched_model_is_let_go_on() -> None:
    watched(torch.nn.Linear(2, 2))._refuse_touched()


@pytest.mark.parametrize("name", ["0.weight", "1.weight_hh_l0"])
def test_a_write_on_a_gpu_is_found_in_a_step_that_is_not_chosen(name: str) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LSTM(2, 2))
    purity = watched(model)
    with torch.no_grad():
        model.get_parameter(name).mul_(2)
    with pytest.raises(UsageError, match=re.escape(f"the forward changed the parameter {name},")):
        purity._refuse_touched()


def test_a_recurrent_layer_may_be_laid_out_anew_for_cudnn() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LSTM(2, 2, num_layers=2))
    purity = watched(model)
    for _ in range(3):  # micro-batches
        lay_out_anew(model[1].parameters())
    purity._refuse_touched()
    lay_out_anew(model[0].parameters())
    with pytest.raises(UsageError, match=r"the forward changed the parameter 0\.weight"):
        purity._refuse_touched()
