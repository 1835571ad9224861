"""`accelerate launch` inside this process, wherever several ranks are started: what the ranks say stands alone."""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path

from samestep.errors import TrainingError, UsageError

_ENDED_BY_A_SIGNAL = 128  # and its number on top, as shells have it


def launch(words: tuple[str, ...], refused: Path | None = None) -> int:
    """Start the ranks that `words` describe, and wait for them. Returns the exit code, of a refusal that of the rank.

    Args:
        refused: where to write a refusal's lines.

    Raises TrainingError if it is the launcher that failed.
    """
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        # Under nohup: torch would set a handler of its own, which a blocked signal never reaches, here and in the ranks.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # or torch writes that it has set it; each rank sets its own
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if "LOGLEVEL" not in os.environ:  # torch's own, for who wants to see what it does
        logging.disable(logging.ERROR)
    from accelerate.commands.launch import launch_command, launch_command_parser

    try:
        launch_command(launch_command_parser().parse_args(list(words)))
    except Exception as error:
        if hasattr(error, "get_first_failure"):  # torch's ChildFailedError: a rank has said why, unless it was killed
            for failure in error.failures.values():  # type: ignore[attr-defined]
                if failure.exitcode == UsageError.exit_code:
                    if refused is not None and isinstance(failure.message, dict):  # its own words; torchrun's are a text
                        refused.write_text(failure.message["message"])
                    return UsageError.exit_code
            rank, failure = error.get_first_failure()
            if failure.exitcode < 0:
                print(f"samestep: rank {rank} was ended by {failure.signal_name()}", file=sys.stderr, flush=True)
            return 1
        if hasattr(error, "sigval"):  # its SignalException: the ranks have had that signal too, and are gone
            return _ENDED_BY_A_SIGNAL + int(error.sigval)
        raise TrainingError(f"the launcher failed: {type(error).__name__}: {error}") from None
    return 0
