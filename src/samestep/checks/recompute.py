"""A micro-batch computed again, beside the training: its loss and gradients, and nothing of it stays."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator

import torch
from accelerate import Accelerator

from samestep.batches import Batches
from samestep.exact import OrderedSum, Statistics, fingerprint
from samestep.randomness.seeding import seed_all
from samestep.task import Task, checked_loss


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

    def backward(self, step: int, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the loss and the gradients' fingerprints; the gradients are left in `grad`, for the caller to clear."""
        with self._forward(step, index) as loss:
            self._accelerator.backward(loss)
            return loss.detach(), self._gradients.prints()

    def prints(self, step: int, index: int) -> torch.Tensor:
        """Fingerprints of the loss, and, unless sharded, of each trainable parameter's gradient, which is left nowhere."""
        parameters = [] if self._gradients.is_sharded else [p for p in self._model.parameters() if p.requires_grad]
        with self._forward(step, index) as loss:
            grads = torch.autograd.grad(loss, parameters, allow_unused=True) if loss.requires_grad and parameters else ()
        return fingerprint([loss.detach(), *grads])

    @contextlib.contextmanager
    def _forward(self, step: int, index: int) -> Iterator[torch.Tensor]:
        """The loss, and a backward inside: buffers that it needs stay as the forward left them until it is through."""
        with self._gradients.apart(), self._statistics.apart(), _modes_kept(self._model):
            batch = self._batches.again(step, index)
            seed_all(self._seed, step, index, device=self._accelerator.device)
            with self._accelerator.autocast():
                loss, _, _ = checked_loss(self._task.loss(self._model, batch))
            yield loss


@contextlib.contextmanager
def _modes_kept(model: torch.nn.Module) -> Iterator[None]:
    """What a forward inside freezes, frees, or sets to another mode is afterwards as it was."""
    trains = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for parameter, requires_grad in trains:
            parameter.requires_grad_(requires_grad)
        for module, training in modes:
            module.training = training
