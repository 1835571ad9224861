"""A micro-batch computed again, beside the training: its loss and gradients, and nothing of it stays."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator

import torch
from accelerate import Accelerator

from samestep.batches import Batches
from samestep.exact import OrderedSum, Statistics, fingerprint
from samestep.randomness.seeding import seed_all
from samestep.task import Batch, Loss, Task, at_step, checked_loss


class Recompute:
    """The forward and backward of any micro-batch of any step, with the random numbers that belong to it."""

    def __init__(
        self,
        seed: int,
        task: Task,
        model: torch.nn.Module,
        accelerator: Accelerator,
        gradients: OrderedSum,
        statistics: Statistics,
        batches: Batches,
    ) -> None:
        self._seed, self._task, self._model, self._accelerator = seed, task, model, accelerator
        self._gradients, self._statistics, self._batches = gradients, statistics, batches

    def over(self, batches: Batches) -> Recompute:
        """The same over other micro-batches."""
        other = copy.copy(self)
        other._batches = batches
        return other

    @property
    def is_ready(self) -> bool:
        """Whether a backward here leaves nothing behind: fp16's scale is chosen by the first that trains."""
        scaler = self._accelerator.scaler
        return scaler is None or scaler._scale is not None

    def rows(self, step: int, index: int) -> Batch:
        """The rows of a micro-batch, read, transformed and collated anew."""
        return self._batches.again(step, index)

    def backward(self, step: int, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the loss and the gradients' fingerprints; the gradients are left in `grad`, for the caller to clear."""
        with self._forward(step, self.rows(step, index), index) as loss:
            self._accelerator.backward(loss)
            return loss.detach(), self._gradients.prints()

    def prints(self, step: int, index: int, batch: Batch | None = None, scaled: bool = True) -> torch.Tensor:
        """Fingerprints of the loss and of each stepped parameter's gradient, which is left nowhere; 0 for one that has none.

        Of a sharded model no gradient is computed.

        Args:
            scaled: by fp16's scale, where there is one.
        """
        parameters = self._gradients.parameters
        wanted = [] if self._gradients.is_sharded else [p for p in parameters if p.requires_grad]
        with self._forward(step, self.rows(step, index) if batch is None else batch, index) as loss:
            scaler = self._accelerator.scaler if scaled and self.is_ready else None
            summed = scaler.scale(loss) if scaler else loss
            grads = torch.autograd.grad(summed, wanted, allow_unused=True) if loss.requires_grad and wanted else ()
        found = dict(zip(map(id, wanted), grads, strict=bool(grads)))
        return fingerprint([loss.detach(), *(found.get(id(parameter)) for parameter in parameters)])

    @contextlib.contextmanager
    def _forward(self, step: int, batch: Batch, index: int) -> Iterator[torch.Tensor]:
        """The loss, and a backward inside: buffers that it needs stay as the forward left them until it is through."""
        with self._gradients.apart(), self._statistics.apart(), _modes_kept(self._model), at_step(step + 1):
            yield self._loss(step, index, batch)[0]

    def ratio(self, step: int, index: int, batch: Batch) -> tuple[float, float]:
        """The loss's sum and weight over any rows, with the random numbers of that micro-batch."""
        with self._gradients.apart(), self._statistics.apart(), _modes_kept(self._model), at_step(step + 1):
            loss, weight, _ = self._loss(step, index, batch, trains=False)
            return float(loss.detach()), float(weight)

    def _loss(self, step: int, index: int, batch: Batch, trains: bool = True) -> Loss:
        seed_all(self._seed, step, index, device=self._accelerator.device)
        with self._accelerator.autocast():
            return checked_loss(self._task.loss(self._model, batch), trains)


def modes_of(model: torch.nn.Module) -> Callable[[], None]:
    """What lays back which parameters train, and which modules are in training mode."""
    trains = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]

    def lay_back() -> None:
        for parameter, requires_grad in trains:
            parameter.requires_grad_(requires_grad)
        for module, training in modes:
            module.training = training

    return lay_back


@contextlib.contextmanager
def _modes_kept(model: torch.nn.Module) -> Iterator[None]:
    """What a forward inside freezes, frees, or sets to another mode is afterwards as it was."""
    lay_back = modes_of(model)
    try:
        yield
    finally:
        lay_back()
