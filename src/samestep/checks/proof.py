"""A checkpoint's own proof: what the next step's first micro-batch came to, in the process that saved it.

A start computes it again before its first step. A task that remembers more than a checkpoint holds comes out otherwise there,
and so do another kernel, another machine and another library.
"""

from __future__ import annotations

import torch

from samestep.checks.alone import refuse_company
from samestep.checks.audit import REMEMBERS
from samestep.checks.recompute import Recompute
from samestep.errors import UsageError
from samestep.exact import fingerprint


class NoProof:
    """Proves nothing."""

    def take(self, step: int) -> torch.Tensor | None:
        return None

    def begin_start(self, step: int, may_part: bool) -> str | None:
        return None


class Proof(NoProof):
    """Of an unsharded run.

    Args:
        first: of this rank's share.
        recorded: of the checkpoint that this start goes on from.
    """

    def __init__(self, recompute: Recompute, first: int, recorded: list[int] | None) -> None:
        self._recompute, self._first, self._recorded = recompute, first, recorded

    def take(self, step: int) -> torch.Tensor | None:
        """After `step` finished steps: fingerprints of the next one's first rows, its loss and each gradient.

        None if that cannot be computed: the step itself will say why.
        """
        try:
            batch = self._recompute.rows(step, 0)
            columns = fingerprint([batch[name] for name in sorted(batch)])
            places = torch.arange(1, 2 * len(columns), 2, device=columns.device)
            prints = self._recompute.prints(step, 0, batch, scaled=False)
        except Exception:
            return None
        return torch.cat([(columns * places).sum()[None].to(prints.device), prints])

    def begin_start(self, step: int, may_part: bool) -> str | None:
        """Before the first step of a start. Raises UsageError for a loss that is not computed alone, and for one that comes out
        otherwise than the checkpoint says.

        Args:
            may_part: another device, another library or other code has been told of: then that is a line to print.
        """
        parted = self._compared(step, may_part)
        refuse_company(self._recompute, step, self._first)
        return parted

    def _compared(self, step: int, may_part: bool) -> str | None:
        recorded, self._recorded = self._recorded, None
        found = self.take(step) if recorded is not None else None
        if recorded is None or found is None or found.tolist() == recorded:
            return None
        differs = [mine != before for mine, before in zip(found.tolist(), recorded, strict=True)]
        number = differs.index(True)
        what = ("its rows", "its loss")[number] if number < 2 else "its gradients"
        words = f"micro-batch 0 of step {step + 1} came out otherwise than in the process that saved step {step}: {what}"
        if may_part:
            return f"WARNING: {words}; the bits part here"
        raise UsageError(
            f"task: {words}. {'data(), transform or collate' if not number else 'The task or the model'} {REMEMBERS} "
            "(docs/tasks.md). To go on all the same, write audit=false"
        )
