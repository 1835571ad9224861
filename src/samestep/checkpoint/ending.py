"""How a run ends before its last step: asked to, in time, and with all of it saved."""

from __future__ import annotations

from typing import NoReturn

from samestep.checkpoint.saving import NullSaver, Saver
from samestep.control import StopFlag, Watchdog
from samestep.errors import Stopped

_PATIENCE_S = 20.0
DUE = 1  # of a step's flag: a save, below whatever asks for a stop, which saves too


class Ending:
    """What asks for a stop, and what saves; the watchdog hears of each save, which takes as long as the disk takes."""

    def __init__(self, stop: StopFlag, watch: Watchdog) -> None:
        self.saver: Saver | NullSaver = NullSaver()
        self._stop, self._watch = stop, watch

    def asked(self) -> int:
        """A signal that asks for a stop, on this rank, or the time limit's being near; 0 otherwise, and more than 1 if so."""
        found = self._stop.asked(lambda: 2 * (self.saver.longest_s + self._watch.slow_step_s) + self.saver.copies.longest_s)
        return found if found != DUE else DUE + 1

    def flag(self) -> int:
        """What this rank says to all where all save together, who act on the largest: a stop, or `DUE`."""
        return self.asked() or DUE * self.saver.is_due_for_all(self._watch.current_step + 1)

    def save(self, step: int) -> None:
        self._watch.saving()
        self.saver.save(step)

    def save_for_all(self, step: int, patience_s: float) -> None:
        """Save, and go on everywhere once it is on disk."""
        self._watch.saving()
        self.saver.save_for_all(step, patience_s)

    def save_and_stop(self, step: int, num_steps: int) -> NoReturn:
        self.save_for_all(step, _PATIENCE_S)
        raise Stopped(f"stopped at step {step} of {num_steps}, saved")
