"""`accelerate launch` inside this process, wherever several ranks are started: what the ranks say stands alone."""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import threading
import time
from pathlib import Path

import psutil

from samestep.errors import TrainingError, UsageError
from samestep.run.folder import RunFolder

_ENDED_BY_A_SIGNAL = 128  # and its number on top, as shells have it
_LISTENS_WITHIN_S = 60.0


def launch(words: tuple[str, ...], folder: RunFolder, refused: Path | None = None) -> int:
    """Start the ranks that `words` describe, and wait for them. Returns the exit code, of a refusal that of the rank.

    Args:
        folder: of the run, which says how long a save takes.
        refused: where to write a refusal's lines.

    Raises TrainingError if it is the launcher that failed.
    """
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        # Under nohup: torch would set a handler of its own, which a blocked signal never reaches, here and in the ranks.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    if signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL:  # a job's script ignores it, for there the ranks get it themselves
        signal.signal(signal.SIGUSR1, lambda number, frame: threading.Thread(target=_pass_on, args=(number,)).start())
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # or torch writes that it has set it; each rank sets its own
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if "LOGLEVEL" not in os.environ:  # torch's own, for who wants to see what it does
        logging.disable(logging.ERROR)
    from accelerate.commands.launch import launch_command, launch_command_parser

    from samestep.control.loopback import keep_stores_to_this_machine

    keep_stores_to_this_machine()
    _wait_for_saves(folder)
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


def _wait_for_saves(folder: RunFolder) -> None:
    """Let torchrun, which kills ranks 30 s after it told them to end, wait for as long as a save of theirs may take.

    TORCH_ELASTIC_SHUTDOWN_TIMEOUT is for signals alone: where a rank has failed, the 30 s are a constant of `PContext.close`.
    """
    from torch.distributed.elastic.multiprocessing.api import PContext

    close = PContext.close

    def close_in_time(context: PContext, death_sig: signal.Signals | None = None, timeout: int = 30) -> None:
        # A rank that is still importing ends without a word on SIGTERM, and with a traceback on SIGINT; later both are a stop.
        asked = signal.SIGTERM if death_sig == signal.SIGINT else death_sig
        close(context, asked, math.ceil(folder.patience_s(timeout)))

    PContext.close = close_in_time  # type: ignore[method-assign, assignment]


def _pass_on(number: int) -> None:
    """Hand a signal on to each rank, as soon as that one listens: it would end a rank that is still importing torch."""
    until = time.monotonic() + _LISTENS_WITHIN_S
    waiting = psutil.Process().children()
    while waiting and time.monotonic() < until:
        for rank in list(waiting):
            try:
                if not rank.is_running() or rank.status() == psutil.STATUS_ZOMBIE:
                    waiting.remove(rank)
                elif _catches(rank.pid, number):
                    rank.send_signal(number)
                    waiting.remove(rank)
            except (psutil.Error, OSError):
                waiting.remove(rank)
        time.sleep(0.1)


def _catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal, as Linux tells (proc(5), SigCgt)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    caught = next((line.split()[1] for line in lines if line.startswith("SigCgt:")), "0")
    return bool(int(caught, 16) >> (number - 1) & 1)
