"""A checkpoint's own proof: what micro-batches of the next steps, and a held-out one, came to in the process that saved it.

A start computes it again before its first step. A task that remembers more than a checkpoint holds comes out otherwise there,
and so do another kernel, another machine and another library. There are two micro-batches, for one may itself hold the row that
brings to a task's mind what the earlier process remembered.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from samestep.checks.alone import refuse_company
from samestep.checks.audit import REMEMBERS
from samestep.checks.purity import NoPurity
from samestep.checks.recompute import Recompute
from samestep.errors import UsageError
from samestep.exact import fingerprint
from samestep.task import at_step

_NOTHING = torch.zeros(1, dtype=torch.int64)


class NoProof:
    """Proves nothing."""

    def take(self, step: int) -> torch.Tensor | None:
        return None

    def begin_start(self, step: int, may_part: bool, backwards: bool = False) -> str | None:
        return None


class Proof(NoProof):
    """Of an unsharded run.

    Args:
        evaluate: gives the fingerprint of what a held-out micro-batch comes to, where there are any.
        after_step: gives the fingerprints of what the task's own would leave of the model, where it has one.
        first: of this rank's share.
        recorded: of the checkpoint that this start goes on from.
    """

    def __init__(
        self,
        recompute: Recompute,
        purity: NoPurity,
        evaluate: Callable[[], torch.Tensor] | None,
        after_step: Callable[[int], torch.Tensor] | None,
        first: int,
        recorded: list[int] | None,
    ) -> None:
        self._recompute, self._purity, self._evaluate, self._after_step = recompute, purity, evaluate, after_step
        self._first, self._recorded = first, recorded

    def take(self, step: int) -> torch.Tensor | None:
        """After `step` finished steps: fingerprints of the next one's first rows, its loss and gradients, of the one after,
        of after_step, and of an evaluation. None if that cannot be computed: the step itself will say why.
        """
        return _tried(lambda: self._all(step, self._forward(step)))

    def begin_start(self, step: int, may_part: bool, backwards: bool = False) -> str | None:
        """Before the first step of a start. Raises UsageError for a loss that is not computed alone, and for what comes out
        otherwise than the checkpoint says.

        Args:
            may_part: another device, another library or other code has been told of: then that is a line to print.
            backwards: the evaluation first, as in a start that has no step left, then the later step's micro-batch: what the
                first one's rows bring to mind is not there then.
        """
        recorded, self._recorded = self._recorded, None
        evaluated = _tried(lambda: self._evaluated(step)) if recorded and backwards else None
        with self._purity.forward():
            forward = _tried(lambda: self._forward(step, backwards)) if recorded else None
        found = _tried(lambda: self._all(step, forward, evaluated)) if forward is not None else None
        with self._purity.forward():
            refuse_company(self._recompute, step, self._first)
        return self._compared(step, recorded, found.tolist(), may_part) if recorded and found is not None else None

    def _forward(self, step: int, backwards: bool = False) -> torch.Tensor:
        first = None if backwards else self._first_micro_batch(step)
        later = self._recompute.prints(step + 1, 0, scaled=False)
        return torch.cat([self._first_micro_batch(step) if first is None else first, _in_one(later)])

    def _first_micro_batch(self, step: int) -> torch.Tensor:
        batch = self._recompute.rows(step, 0)
        rows = _in_one(fingerprint([batch[name] for name in sorted(batch)]))
        prints = self._recompute.prints(step, 0, batch, scaled=False)
        return torch.cat([rows.to(prints.device), prints])

    def _all(self, step: int, forward: torch.Tensor, evaluated: torch.Tensor | None = None) -> torch.Tensor:
        after = _in_one(self._after_step(step)) if self._after_step else _NOTHING
        evaluated = self._evaluated(step) if evaluated is None else evaluated
        return torch.cat([forward, after.to(forward.device), evaluated.to(forward.device)])

    def _evaluated(self, step: int) -> torch.Tensor:
        with self._purity.evaluation(), at_step(step):
            return self._evaluate() if self._evaluate else _NOTHING

    def _compared(self, step: int, recorded: list[int], found: list[int], may_part: bool) -> str | None:
        if not (recorded[-1] and found[-1]):  # there was no evaluation then, or there is none now
            found[-1] = recorded[-1]
        if found == recorded or len(found) != len(recorded):  # an earlier release's proof had another form
            return None
        number = [mine != before for mine, before in zip(found, recorded, strict=True)].index(True)
        of = [step + 1] * len(found)
        of[-3] += 1  # the later micro-batch
        what = ["the rows", "the loss", *["a gradient"] * (len(found) - 5), "a micro-batch", "after_step", "an evaluation"][
            number
        ]
        words = f"{what} of step {of[number]} came out otherwise than in the process that saved step {step}"
        if may_part:
            return f"WARNING: {words}; the bits part here"
        who = "the task or the model" if number else "data(), transform or collate"
        raise UsageError(f"task: {words}: {who} {REMEMBERS} (docs/tasks.md). To go on all the same, write audit=false")


def _tried(compute: Callable[[], torch.Tensor]) -> torch.Tensor | None:
    try:
        return compute()
    except Exception:
        return None


def _in_one(prints: torch.Tensor) -> torch.Tensor:
    """(n,) to (1,), so that none may take another's place."""
    return (prints * torch.arange(1, 2 * len(prints), 2, device=prints.device)).sum()[None]
