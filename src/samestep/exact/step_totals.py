"""The one small collective of a step: losses, weights, a flag, and which parameters were used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from samestep.exact.scalars import Scalar, as_float, ratio
from samestep.exact.totals import gather, in_order, padded
from samestep.exact.tree import cuts, tree_sum


@dataclass
class Totals:
    """A step over all ranks. `loss` is Σ sums / Σ weights and `weight` is Σ weights.

    It is a step's last collective, so a finite loss also says that all its gradients have arrived.
    """

    loss: Scalar
    weight: Scalar
    used: list[bool]
    flag: int


class StepExchange:
    """Sums a step's losses and weights in the tree's order, and carries a flag along.

    Args:
        num_parameters: trainable ones.
        micro_batches, leaves: V and M as in `OrderedSum`, which decide who has which micro-batches.
    """

    def __init__(self, micro_batches: int, leaves: int, num_parameters: int, world_size: int, device: torch.device) -> None:
        self._starts = [cut * (micro_batches // leaves) for cut in cuts(leaves, world_size)]
        self._num_parameters = num_parameters
        self._world_size, self._device = world_size, device
        self._on_host = device.type == "cpu"

    def total(self, sums: Sequence[tuple[torch.Tensor, Scalar]], used: list[bool], flag: int) -> Totals:
        """Sum this rank's (loss, weight) of each micro-batch with everyone's, in the tree's order."""
        if self._on_host:
            pairs = [(loss.item(), as_float(weight)) for loss, weight in sums]
            if self._world_size == 1 and len(pairs) == 1:
                loss, weight = pairs[0]
                return Totals(ratio(loss, weight), weight, used, flag)
            values = torch.tensor(pairs, dtype=torch.float64)
        else:
            values = torch.stack([torch.stack([loss.detach().double() for loss, _ in sums]), _weights(sums, self._device)], 1)
        if self._world_size == 1:
            return self._totals(values, used, flag)
        values = padded(values, self._starts)
        host = torch.from_numpy(np.concatenate([np.array([flag], np.uint8), np.packbits(used)]))
        if self._on_host:  # one message
            size = values.numel() * values.element_size()
            message = gather(torch.cat([values.reshape(-1).view(torch.uint8), host]))
            everyone, hosts = message[:, :size].contiguous().view(torch.float64), message[:, size:]
        else:  # what hosts know travels between hosts, so that nobody waits for a device
            everyone, hosts = gather(values), gather(host)
        rows = in_order(everyone.view(self._world_size, -1, 2), self._starts)
        flags = hosts.numpy()
        anywhere = np.bitwise_or.reduce(flags[:, 1:], axis=0)
        used = np.unpackbits(anywhere, count=self._num_parameters).astype(bool).tolist()
        return self._totals(rows, used, int(flags[:, 0].max()))

    def _totals(self, rows: torch.Tensor, used: list[bool], flag: int) -> Totals:
        loss, weight = tree_sum(rows).tolist() if self._on_host else tree_sum(rows)
        return Totals(ratio(loss, weight), weight, used, flag)


def _weights(sums: Sequence[tuple[torch.Tensor, Scalar]], device: torch.device) -> torch.Tensor:
    weights = [weight for _, weight in sums]
    if all(isinstance(weight, torch.Tensor) for weight in weights):
        return torch.stack([weight.detach().to(device, torch.float64, non_blocking=True) for weight in weights])  # type: ignore[union-attr]
    return torch.tensor([as_float(weight) for weight in weights], dtype=torch.float64).to(device, non_blocking=True)
