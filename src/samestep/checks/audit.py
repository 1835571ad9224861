"""An audit against silent corruption: now and then each rank computes a neighbour's micro-batch too, and the bits must agree.

It works because bits do not depend on the rank. What is compared is the loss and a fingerprint of every gradient.
"""

from __future__ import annotations

import torch

from samestep.batches import Plan
from samestep.checks.recompute import Recompute
from samestep.errors import TrainingError
from samestep.exact import OrderedSum, fingerprint, gather
from samestep.runtime.device_kind import beside_a_difference


class NoAudit:
    """Audits nothing."""

    def begin(self, step: int) -> None: ...

    def compare(self, step: int) -> None: ...


class Auditor(NoAudit):
    """Recomputes the first micro-batch of the next rank's share, every so many steps.

    Args:
        peers: each rank's host and device, for the words of the error.
    """

    def __init__(
        self, every: int, plan: Plan, recompute: Recompute, gradients: OrderedSum, rank: int, peers: list[str]
    ) -> None:
        self._every, self._plan, self._recompute = every, plan, recompute
        self._gradients, self._peers = gradients, peers
        self._index = gradients.shares[(rank + 1) % gradients.world_size][0]
        self._recomputed: torch.Tensor | None = None

    def begin(self, step: int) -> None:
        """Before a step: if its turn has come, compute the neighbour's micro-batch, and leave no trace of that."""
        due = (step + 1) % self._every == 0
        self._gradients.watch_first = due
        if not due:
            return
        counts = self._plan.num_rows(step, self._index) > 0
        if counts or self._gradients.is_sharded:
            self._recomputed = self._message(*self._recompute.backward(step, self._index))
            self._gradients.clear()
        if not counts:  # its owner has nothing to show for it
            self._recomputed = torch.zeros_like(self._message(torch.zeros(()), self._gradients.first_fingerprint))

    @staticmethod
    def _message(loss: torch.Tensor, prints: torch.Tensor) -> torch.Tensor:
        return torch.cat([fingerprint([loss.detach()]).to(prints.device), prints])

    def compare(self, step: int) -> None:
        """After the step's backward: raise TrainingError on every rank if any pair of ranks disagrees."""
        if self._recomputed is None:
            return
        counts = self._plan.num_rows(step, self._gradients.share[0]) > 0
        loss = self._gradients.first_loss if counts else torch.zeros_like(self._gradients.first_loss)
        computed = self._message(loss, self._gradients.first_fingerprint)
        everyone = gather(torch.stack([computed, self._recomputed])).tolist()
        self._recomputed = None
        world_size = len(everyone)
        for auditor, (_, recomputed) in enumerate(everyone):
            checked = (auditor + 1) % world_size
            if recomputed != everyone[checked][0]:
                what = "loss" if recomputed[0] != everyone[checked][0][0] else "gradient"
                where = f"rank {checked} ({self._peers[checked]})"
                where += f" and on rank {auditor} ({self._peers[auditor]})" if auditor != checked else ", computed twice"
                raise TrainingError(
                    f"step {step + 1}: the audit found another {what} of the same micro-batch on {where}. A device computes "
                    "wrongly, or the task draws numbers that are not seeded: samestep verify tells which. No step was taken."
                    + beside_a_difference(self._gradients.first_fingerprint.device)
                )
