"""A run that is asked to stop before it has begun: there is nothing yet that could be saved, and one line says so."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from types import FrameType

STARTING = {"train", "launch", "sweep"}  # the commands that begin a run here
ASKED_TO_STOP = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
BEFORE_IT_BEGAN = "samestep: stopped before it began; the same line starts it"
_EXIT_CODE = 75  # of errors.Stopped, which takes longer to import


def end_quietly_when_asked() -> None:
    """Until the run, or torch's launcher, takes the signals over. Of several ranks one speaks."""
    rank = os.environ.get("RANK")

    def end(number: int, frame: FrameType | None) -> None:
        if rank in (None, "0"):
            with contextlib.suppress(OSError):  # whoever read it has had the signal too
                print(BEFORE_IT_BEGAN, file=sys.stderr, flush=True)
        os._exit(_EXIT_CODE)

    for number in ASKED_TO_STOP:
        # A rank gets SIGTERM where another has failed, or its launcher was stopped: each has more to say than it has.
        if signal.getsignal(number) != signal.SIG_IGN and not (rank is not None and number == signal.SIGTERM):
            signal.signal(number, end)
