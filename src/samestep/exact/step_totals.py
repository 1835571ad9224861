"""The small numbers of a step, all in one message: losses, weights, a flag, and which parameters were used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np
import torch

from samestep.control import everyones, gate
from samestep.errors import UsageError
from samestep.exact.gradients import OrderedSum
from samestep.exact.route import Companion
from samestep.exact.scalars import Scalar, as_float, ratio
from samestep.exact.totals import gather, padded
from samestep.exact.tree import tree_sum
from samestep.task import Ratio, refuse_taken


@dataclass
class Totals:
    """A step over all ranks. `loss` is Σ sums / Σ weights, `weight` is Σ weights, `numbers` are a task's own, as the loss is.

    On a GPU it is a step's last collective, so that a finite loss also says that all its gradients have arrived: the gate
    makes it NaN where the collectives were aborted before it came.
    """

    loss: Scalar
    weight: Scalar
    numbers: dict[str, Scalar]
    used: list[bool]
    flag: int


class StepExchange:
    """Sums a step's losses, weights and numbers in the tree's order, and carries a flag along.

    Args:
        shares: each rank's micro-batches of a step.
        micro_batches: V; what a share has beyond them counts for nothing.
        num_parameters: trainable ones.
    """

    def __init__(self, shares: Sequence[Sequence[int]], micro_batches: int, num_parameters: int, device: torch.device) -> None:
        world_size = len(shares)
        self._most = max(map(len, shares))
        places = {index: rank * self._most + place for rank, own in enumerate(shares) for place, index in enumerate(own)}
        self._places = torch.tensor([places[index] for index in range(micro_batches)], device=device)  # in everyone's rows
        self._num_parameters = num_parameters
        self._num_packed = len(_packed([False] * num_parameters, 0))
        self._world_size, self._device = world_size, device
        self._on_host = device.type == "cpu"
        self._names: list[str] = []  # of the task's own numbers, the same in every micro-batch
        self._known: Set[str] | None = None  # the same; None until the first micro-batch
        self.meeting: Callable[[], None] = lambda: None  # as in BucketExchange
        self.going_on: Callable[[], None] = lambda: None
        self._rows: list[list[Scalar]] = []  # of this rank's micro-batches: sum, weight, and so on for each of the names
        self._everyones: torch.Tensor | None = None

    def add(self, loss: torch.Tensor, weight: Scalar, numbers: Mapping[str, Ratio], counts: bool) -> None:
        """Take what a micro-batch came to. Raises UsageError where it has other numbers than those before it."""
        if numbers.keys() != self._known:
            self._learn(sorted(numbers))
        row: list[Scalar] = [loss, weight]
        for name in self._names:
            row += numbers[name]
        if not counts:
            row = [torch.zeros_like(value) if isinstance(value, torch.Tensor) else 0.0 for value in row]
        if self._on_host:
            row = [float(value.item()) if isinstance(value, torch.Tensor) else float(value) for value in row]
        else:
            row = [value.detach() if isinstance(value, torch.Tensor) else value for value in row]
        self._rows.append(row)

    def _learn(self, names: list[str]) -> None:
        if self._known is not None:
            words = f"the numbers {', '.join(names) or 'of nothing'} for one micro-batch and {', '.join(self._names) or 'none'}"
            raise UsageError(f"task: loss returned {words} for another; return the same for each, (0, 0) where there is none")
        refuse_taken(names)
        self._names, self._known = names, set(names)
        if self._world_size > 1:  # once a start: all ranks are in their first micro-batch
            self.meeting()
            found = everyones(names)
            self.going_on()
            for rank, others in enumerate(found):
                if others != found[0]:
                    words = f"{', '.join(found[0]) or 'none'} on rank 0 and {', '.join(others) or 'none'} on rank {rank}"
                    raise UsageError(f"task: loss returned the numbers {words}; return the same for each micro-batch")

    def message(self, used: list[bool], flag: int) -> torch.Tensor:
        """On a CPU, what this rank has to say of a step, as bytes: as many on every rank."""
        values = padded(torch.tensor(self._rows, dtype=torch.float64), self._most)
        return torch.cat([values.reshape(-1).view(torch.uint8), _packed(used, flag)])

    def _message_size(self) -> int:
        return self._most * (2 + 2 * len(self._names)) * torch.float64.itemsize + self._num_packed

    def travel_with(self, gradients: OrderedSum, asked: Callable[[], int]) -> None:
        """Let the message go along with the last bucket, where that one goes everywhere at once; `asked` gives the flag."""
        if gradients.exchange is None:
            return
        self.meeting, self.going_on = gradients.exchange.meeting, gradients.exchange.going_on
        if self._on_host:
            gradients.exchange.companion = Companion(
                self._message_size, lambda: self.message(gradients.used, asked()), self._take
            )

    def _take(self, everyones: torch.Tensor) -> None:
        self._everyones = everyones

    def total(self, used: list[bool], asked: Callable[[], int]) -> Totals:
        """Everyone's numbers summed in the tree's order; `asked` gives the flag, if it has not travelled already."""
        everyones, self._everyones = self._everyones, None
        if self._world_size == 1:
            return self._alone(used, asked())
        width = 2 + 2 * len(self._names)
        if self._on_host:
            message = gather(self.message(used, asked())) if everyones is None else everyones
            size = self._message_size() - self._num_packed
            values, hosts = message[:, :size].contiguous().view(torch.float64), message[:, size : size + self._num_packed]
        else:  # what hosts know travels between hosts, so that nobody waits for a device
            values, hosts = gather(padded(self._stacked(), self._most)), gather(_packed(used, asked()))
        gate.refuse()
        self._rows.clear()
        flags = hosts.numpy()
        anywhere = np.bitwise_or.reduce(flags[:, 1:], axis=0)
        used = np.unpackbits(anywhere, count=self._num_parameters).astype(bool).tolist()
        return self._totals(values.view(-1, width)[self._places], used, int(flags[:, 0].max()))

    def _alone(self, used: list[bool], flag: int) -> Totals:
        if self._on_host and len(self._rows) == 1 and not self._names:
            (loss, weight), *_ = self._rows
            self._rows.clear()
            return Totals(ratio(loss, weight), weight, {}, used, flag)
        values = torch.tensor(self._rows, dtype=torch.float64) if self._on_host else self._stacked()
        self._rows.clear()
        return self._totals(values, used, flag)

    def _totals(self, rows: torch.Tensor, used: list[bool], flag: int) -> Totals:
        summed = tree_sum(rows)
        loss, weight, *rest = summed.tolist() if self._on_host else summed
        pairs = zip(rest[::2], rest[1::2], strict=True)
        numbers = {name: ratio(*pair) for name, pair in zip(self._names, pairs, strict=True)}
        mean = ratio(loss, weight)
        if isinstance(mean, torch.Tensor) and self._world_size > 1:
            mean = gate.passed(mean)
        return Totals(mean, weight, numbers, used, flag)

    def _stacked(self) -> torch.Tensor:
        """This rank's rows as one tensor on the device, without waiting for it."""
        columns = []
        for column in zip(*self._rows, strict=True):
            if all(isinstance(value, torch.Tensor) for value in column):
                there = [value.detach().to(self._device, torch.float64, non_blocking=True) for value in column]
                columns.append(torch.stack(there))
            else:
                here = torch.tensor([as_float(value) for value in column], dtype=torch.float64)
                columns.append(here.to(self._device, non_blocking=True))
        return torch.stack(columns, 1)


def _packed(used: list[bool], flag: int) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([np.array([flag], np.uint8), np.packbits(np.array(used, bool))]))
