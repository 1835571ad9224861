"""Whether after_step depends on what the loss has left behind in this process, which no other process would have.

On several ranks each has seen other micro-batches last, so what they leave must be the same bits. On one it is done twice from
the same state, the second time after the share's first micro-batch was the last that the loss has seen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from samestep.checks.audit import Schedule
from samestep.checks.recompute import Recompute, modes_of
from samestep.errors import UsageError
from samestep.exact import OrderedSum, fingerprint, gather

_OTHERWISE = (
    "which depends on how a step is split over processes: it reads what the loss has seen last in this process. Let it read "
    "parameters and buffers alone (docs/tasks.md)"
)


class NoTwice:
    """Looks at nothing."""

    def __call__(self, step: int, change: Callable[[], None]) -> None:
        change()


class Twice(NoTwice):
    """Runs after_step, and in chosen steps looks at what it has left."""

    def __init__(self, model: torch.nn.Module, schedule: Schedule, recompute: Recompute, gradients: OrderedSum) -> None:
        self._model, self._schedule, self._recompute, self._gradients = model, schedule, recompute, gradients

    def __call__(self, step: int, change: Callable[[], None]) -> None:
        """Run `change`. Raises UsageError on every rank if it is not a function of what a checkpoint holds."""
        is_alone = self._gradients.world_size == 1
        if not self._schedule.is_chosen(step):
            change()
        elif is_alone:
            self._do_twice(step, change)
        else:
            change()
            self._refuse_unequal(gather(self._prints()))

    def _places(self) -> list[tuple[str, dict[str, Any], str, torch.Tensor]]:
        """Each parameter and buffer as its name, the dict it stands in, its key there, and the tensor."""
        return [
            (f"{path}.{key}".lstrip("."), names, key, tensor)
            for path, module in self._model.named_modules()
            for names in (module._parameters, module._buffers)
            for key, tensor in names.items()
            if tensor is not None and tensor.layout == torch.strided
        ]

    def _prints(self) -> torch.Tensor:
        return fingerprint([tensor.detach() for *_, tensor in self._places()])

    def tried(self, change: Callable[[], None]) -> torch.Tensor:
        """Fingerprints of what `change` would leave of each parameter and buffer; nothing of it stays."""
        lay_back = self._kept()
        try:
            with torch.no_grad():
                change()
            return self._prints()
        finally:
            lay_back()

    def _do_twice(self, step: int, change: Callable[[], None]) -> None:
        """The model is as the first time has left it."""
        lay_back = self._kept()
        change()
        first, lay_forth = self._prints(), self._kept()
        lay_back()
        with torch.enable_grad():
            self._recompute.prints(step, self._gradients.share[0])
        change()
        self._refuse_unequal(torch.stack([first, self._prints()]))
        lay_forth()

    def _kept(self) -> Callable[[], None]:
        """What lays everything back as it is now; kept on the host, for a device may have no room for it twice."""
        kept = [(names, key, tensor, tensor.detach().to("cpu", copy=True)) for _, names, key, tensor in self._places()]
        modes = modes_of(self._model)

        def lay() -> None:
            for names, key, tensor, values in kept:
                names[key] = tensor
                tensor.detach().copy_(values)
            modes()

        return lay

    def _refuse_unequal(self, prints: torch.Tensor) -> None:
        """Args: prints: (times or ranks, tensors)."""
        same = (prints == prints[0]).all(dim=0).tolist()
        other = next((name for (name, *_), is_same in zip(self._places(), same, strict=True) if not is_same), None)
        if other is not None:
            raise UsageError(f"task: after_step left another {other} after another micro-batch, {_OTHERWISE}")
