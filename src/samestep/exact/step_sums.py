"""All that a step adds up over its micro-batches and over the ranks: gradients, losses and weights, running statistics."""

from __future__ import annotations

from collections.abc import Callable

import torch

from samestep.exact.gradients import OrderedSum
from samestep.exact.sharded.model import ShardedModel
from samestep.exact.sharded.sum import ShardedSum
from samestep.exact.statistics import Statistics
from samestep.exact.step_totals import StepExchange, Totals


class StepSums:
    """The three sums of a step, which end together.

    Args:
        counted: how many of a step's micro-batches hold rows.
        asked: gives this rank's flag, which travels with the numbers.
        sharded: the model, where no process has all of it.
    """

    def __init__(
        self,
        gradients: OrderedSum,
        statistics: Statistics,
        exchange: StepExchange,
        counted: Callable[[int], int],
        asked: Callable[[], int],
        sharded: ShardedModel | None = None,
    ) -> None:
        self.gradients, self.statistics, self.exchange, self.sharded = gradients, statistics, exchange, sharded
        self._counted, self._asked = counted, asked
        if isinstance(gradients, ShardedSum):
            exchange.meeting, exchange.going_on = gradients.meeting, gradients.going_on
        exchange.travel_with(gradients, asked)

    def finish(self, step: int) -> tuple[Totals, list[torch.Tensor]]:
        """Once all micro-batches are through: the step's numbers, and the sums of its gradients."""
        if self.statistics.exchanges:
            self.statistics.average(self._counted(step))
        total = self.exchange.total(self.gradients.used, self._asked)
        return total, self.gradients.finish(total.used)
