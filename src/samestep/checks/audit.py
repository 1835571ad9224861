"""A micro-batch computed again must give the same bits: by its own rank after the others of its share, and by a neighbour.

Whoever remembers something of earlier micro-batches, in whatever place, cannot give the same again: the rank itself has seen
its share by then, and the neighbour has a history of its own. A device that computes wrongly shows as well. What is compared
are the rows, the loss and a fingerprint of every gradient.
"""

from __future__ import annotations

import torch

from samestep.batches import MicroBatch, Plan
from samestep.checks.recompute import Recompute
from samestep.errors import TrainingError, UsageError
from samestep.exact import OrderedSum, as_bits, fingerprint, gather
from samestep.runtime.device_kind import beside_a_difference
from samestep.task import Batch

_COST = 0.005  # what looks may add to a run
_A_LOOK = 2  # micro-batches: its own and the neighbour's, or its own and what `Purity` looks at, which was measured
REMEMBERS = (
    "remembers something from one call to the next (an iterator, a counter, a cache, a global). Draw numbers from torch, numpy "
    "or random, which are seeded; ask samestep.step() for the step; keep state in a buffer, and change it in after_step"
)
_AGAIN = {
    "rows": "its rows came out otherwise: data(), transform or collate keeps state, or writes into rows that the source still "
    "has. Draw from transform's rng, and write into copies",
    "loss": f"its loss came out otherwise: the task or the model {REMEMBERS}",
    "gradient": f"a gradient came out otherwise: the task or the model {REMEMBERS}",
}


class Schedule:
    """Which steps are looked at: the first, then ever rarer ones, but as often as half a percent of a run's work allows.

    Args:
        first_step, last_step: of this start, from 0, and of the run.
        share: how many micro-batches a rank computes in a step.
        every: each so-manyth step, and no other, where somebody has said so.
    """

    def __init__(self, first_step: int, last_step: int, share: int, every: int | None = None) -> None:
        self._first_step, self._last_step, self._every = first_step, last_step, every
        self.rarest = max(1, round(_A_LOOK / (_COST * share)))

    def is_chosen(self, step: int) -> bool:
        if self._every is not None:
            return (step + 1) % self._every == 0
        number = step - self._first_step + 1
        return number & (number - 1) == 0 or number % self.rarest == 0 or step == self._last_step


class NoAudit:
    """Audits nothing."""

    is_on = False  # in this step

    def begin(self, step: int) -> None: ...

    def begin_micro_batch(self, step: int, micro: MicroBatch) -> None: ...

    def end_micro_batch(self, step: int, micro: MicroBatch) -> None: ...

    def compare(self, step: int) -> None: ...


class Auditor(NoAudit):
    """Computes again the first micro-batch of this rank's share, and that of the next rank's.

    Args:
        schedule: which steps are audited.
        peers: each rank's host and device, for the words of the error.
    """

    def __init__(
        self,
        schedule: Schedule,
        plan: Plan,
        recompute: Recompute,
        gradients: OrderedSum,
        rank: int,
        peers: list[str],
    ) -> None:
        self._schedule, self._plan, self._recompute = schedule, plan, recompute
        self._gradients, self._peers = gradients, peers
        self._own = gradients.share[0]
        self._next = gradients.shares[(rank + 1) % gradients.world_size][0]
        self._rows: Batch = {}
        self._again = self._neighbours = torch.zeros(0)

    def begin(self, step: int) -> None:
        """Before a step whose turn has come; of a sharded model the neighbour's is computed now, for it needs all gradients."""
        self.is_on = self._gradients.watch_first = self._schedule.is_chosen(step)
        if self.is_on and self._gradients.is_sharded and self._recompute.is_ready:
            loss, prints = self._recompute.backward(step, self._next)
            self._gradients.clear()
            self._neighbours = self._message(
                torch.cat([fingerprint([loss]).to(prints.device), prints]), self._counts(step, self._next)
            )
        elif self.is_on:
            self._neighbours = self._not_computed()

    def begin_micro_batch(self, step: int, micro: MicroBatch) -> None:
        if micro.index == self._own:
            self._rows = {name: tensor.clone() for name, tensor in micro.batch.items()}

    def end_micro_batch(self, step: int, micro: MicroBatch) -> None:
        """After the last of the share, compute its first once more, rows and all, and the neighbour's."""
        if micro.index != self._gradients.share[-1]:
            return
        batch = self._recompute.rows(step, self._own)
        is_same = batch.keys() == self._rows.keys() and all(
            self._rows[name].shape == tensor.shape and torch.equal(as_bits(self._rows[name]), as_bits(tensor))
            for name, tensor in batch.items()
        )
        prints = self._recompute.prints(step, self._own, batch)
        self._again = self._message(prints, self._counts(step, self._own), other_rows=not is_same)
        if self._gradients.world_size > 1 and not self._gradients.is_sharded:
            self._neighbours = self._message(self._recompute.prints(step, self._next), self._counts(step, self._next))
        self._rows = {}

    def _counts(self, step: int, index: int) -> bool:
        return self._plan.num_rows(step, index) > 0

    def _message(self, prints: torch.Tensor, counts: bool, other_rows: bool = False) -> torch.Tensor:
        """What was computed of a micro-batch, its loss and its gradients; nothing of one without rows."""
        found = torch.cat([prints, prints.new_tensor([other_rows])])
        return found if counts else torch.zeros_like(found)

    def _not_computed(self) -> torch.Tensor:
        prints = self._gradients.first_fingerprint
        return torch.cat([prints.new_zeros(len(prints) + 1), prints.new_ones(1)])

    def compare(self, step: int) -> None:
        """After the step's backward: raise on every rank if any has found other bits."""
        if not self.is_on:
            return
        self.is_on = self._gradients.watch_first = False
        prints = self._gradients.first_fingerprint
        loss = fingerprint([self._gradients.first_loss]).to(prints.device)
        computed = self._message(torch.cat([loss, prints]), self._counts(step, self._own))
        everyone = gather(torch.stack([computed, self._neighbours, self._again])).tolist()
        for rank, (first, _, again) in enumerate(everyone):
            if self._gradients.is_sharded:  # no gradient is computed for a look alone
                again[1:-1] = first[1:-1]
            if first != again:
                what = "rows" if again[-1] else self._part(first, again)
                index = self._gradients.shares[rank][0]
                raise UsageError(
                    f"task: step {step + 1}: micro-batch {index} was computed once more on rank {rank} ({self._peers[rank]}), "
                    f"and {_AGAIN[what]} (docs/tasks.md). Should the task do none of that, a device computes wrongly"
                    + beside_a_difference(computed.device)
                )
        for auditor, (_, recomputed, _) in enumerate(everyone):
            checked = (auditor + 1) % len(everyone)
            if not recomputed[-1] and recomputed != (first := everyone[checked][0]):
                part = self._part(first, recomputed)
                where = f"rank {checked} ({self._peers[checked]}) and on rank {auditor} ({self._peers[auditor]})"
                raise TrainingError(
                    f"step {step + 1}: the audit found another {part} of the same micro-batch on {where}. The task or the "
                    "model remembers earlier micro-batches, of which each rank has had others (docs/tasks.md), draws numbers "
                    "that are not seeded, or a device computes wrongly: samestep verify tells which. No step was taken."
                    + beside_a_difference(computed.device)
                )

    @staticmethod
    def _part(first: list[int], other: list[int]) -> str:
        return "loss" if first[0] != other[0] else "gradient"
