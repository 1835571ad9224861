"""Whether what collectives bring may still count: once they are broken, their buffers hold whatever was there."""

from __future__ import annotations

import math

import torch


class Gate:
    """Shut before collectives are broken, from any thread; a step that asks it afterwards does not count.

    A device reads the host's word when it comes to it, behind the step's last collective: what is queued there by then counts
    only if that collective ended by itself. The copy is of pinned memory, which is read when the copy runs.
    """

    def __init__(self) -> None:
        self._word: torch.Tensor | None = None  # -0.0, to which any number may be added, or NaN once shut
        self.is_shut = False

    def open(self) -> None:
        """For a new run in this process."""
        self.is_shut, self._word = False, None

    def shut(self) -> None:
        self.is_shut = True
        if self._word is not None:
            self._word.fill_(math.nan)

    def refuse(self) -> None:
        """Raise RuntimeError where it is shut, as who waits for a dead peer does: nothing that came in may be used."""
        if self.is_shut:
            raise RuntimeError("torn out of waiting for the other ranks: Connection closed by peer")

    def passed(self, loss: torch.Tensor) -> torch.Tensor:
        """On a GPU, the loss, or NaN if the gate is shut when the device comes here; nobody waits."""
        if self._word is None:
            self._word = torch.full((), -0.0, dtype=loss.dtype, pin_memory=loss.is_cuda)
            if self.is_shut:  # since before, or by another thread just now
                self.shut()
        return loss + self._word.to(loss.device, non_blocking=True)


gate = Gate()
