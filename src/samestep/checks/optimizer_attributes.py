"""Whether an optimizer keeps anything that changes outside what a checkpoint holds of it."""

from __future__ import annotations

from typing import Any

import torch

from samestep.checks import attributes
from samestep.errors import UsageError

_PUT_THERE = ("found_inf", "grad_scale", "_opt_called", "step")  # by the run itself


class OptimizerAttributes:
    """Compares an optimizer's own attributes across chosen steps."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._of_any = {*vars(torch.optim.SGD([torch.zeros(1)])), *_PUT_THERE}
        self._before: dict[str, Any] | None = None

    def watch(self, is_chosen: bool) -> None:
        """Called between two steps, of which the next is chosen or not. Raises UsageError for what the last has changed."""
        if not is_chosen and self._before is None:
            return
        found = {
            key: attributes.look(value)
            for key, value in vars(self._optimizer).items()
            if key not in self._of_any and not isinstance(value, torch.nn.Module)
        }
        if self._before is not None:
            changed = [key for key in {**self._before, **found} if self._before.get(key) != found.get(key)]
            if changed:
                raise UsageError(
                    f"task: the optimizer's step changes its attribute {attributes.listed(changed)}, which no checkpoint "
                    "holds; keep it in its state or in a group"
                )
        self._before = found if is_chosen else None
