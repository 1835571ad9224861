"""A micro-batch computed again, beside the training: its loss, and nothing of it stays."""

from __future__ import annotations

import torch
from accelerate import Accelerator

from samestep.batches import Batches
from samestep.exact import OrderedSum
from samestep.seeding import seed_all
from samestep.task import Ratio, Task, checked_ratio


class Recompute:
    """The forward of any micro-batch of any step, with the random numbers that belong to it."""

    def __init__(
        self, seed: int, task: Task, model: torch.nn.Module, accelerator: Accelerator, gradients: OrderedSum, batches: Batches
    ) -> None:
        self._seed, self._task, self._model, self._accelerator = seed, task, model, accelerator
        self._gradients, self._batches = gradients, batches

    def __call__(self, step: int, index: int, backward: bool = False) -> Ratio:
        """Returns what the task's loss returns; with `backward` the gradients are left in `grad`, for the caller to clear."""
        buffers = [(buffer, buffer.clone()) for buffer in self._model.buffers()]
        with self._gradients.apart():
            batch = self._batches.again(step, index)
            seed_all(self._seed, step, index, device=self._accelerator.device)
            with self._accelerator.autocast():
                loss, weight = checked_ratio(self._task.loss(self._model, batch))
            if backward:
                self._accelerator.backward(loss)
        for buffer, before in buffers:
            buffer.copy_(before)
        return loss, weight
