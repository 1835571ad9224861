"""The watch over one rank: what it says, and what it does where the main thread cannot be reached."""

from __future__ import annotations

import contextlib
import shlex
import signal
import sys
import time

import torch

from samestep.checkpoint import Saver
from samestep.checks import NoProof
from samestep.config import Config
from samestep.control import Board, Progress, StopFlag, Watchdog, gate
from samestep.errors import Stopped
from samestep.loop import Training
from samestep.run.folder import RunFolder
from samestep.runtime import Runtime
from samestep.session.failure import record_failure, save_what_is_finished

_ASKED_S = 20.0  # of the 30 s after which torchrun, and a SLURM node, kill what they have asked to end
_LEAST_ASKED_S = 5.0
_BETWEEN_STEPS_S = 10.0


def make_watchdog(config: Config, folder: RunFolder, runtime: Runtime, board: Board) -> Watchdog:
    def accuse(paragraph: str, culprits: dict[int, str]) -> None:
        victim = runtime.rank not in culprits
        record_failure(folder, runtime, paragraph, victim=victim, blamed=sorted(set(culprits.values())))
        print(f"samestep: {paragraph}", file=sys.stderr, flush=True)
        if runtime.is_main:
            folder.write_state(status="failed", reason=paragraph)

    def mourn(paragraph: str, dead: dict[int, str]) -> None:
        if not any(folder.failure(rank).exists() for rank in dead):  # who has spoken has said it better
            record_failure(folder, runtime, paragraph, victim=True)

    return Watchdog(
        config.watchdog,
        runtime.rank,
        runtime.world_size,
        runtime.host,
        board,
        folder.log(runtime.rank),
        accuse,
        mourn,
        verdict=runtime.verdict,
        store_port=runtime.store[1] if runtime.store else None,
    )


def watch_over(run: Training, saver: Saver, folder: RunFolder, runtime: Runtime, stop: StopFlag, board: Board) -> None:
    """Start the run's watch, which can save what is finished by itself."""

    def is_overdue() -> bool:
        """Whether the launcher's patience ends before the main thread, and a save, could come to their end."""
        if stop.noticed_at is None or not (runtime.launched or runtime.job):
            return False
        return time.monotonic() - stop.noticed_at > max(_LEAST_ASKED_S, _ASKED_S - saver.longest_s)

    gate.open()
    stop.listen()
    if run.optimizer.device.type == "cuda":
        run.watch.progress = Progress(lambda: torch.cuda.current_stream().record_event())
    run.watch.is_overdue = is_overdue
    run.watch.rescue = lambda: _rescue(run, saver, folder, runtime, stop, board)
    run.watch.start()


def words_of_a_stop(folder: RunFolder, stop: StopFlag, board: Board) -> str | None:
    """Why this rank leaves in the middle of a step, where that is because it was asked to and could not come to its end."""
    if stop.noticed_at is None or time.monotonic() - stop.noticed_at < _LEAST_ASKED_S or board.read_one("dead", 0):
        return None
    name = signal.Signals(stop.signal).name
    return f"stopped by {name} in a step that took too long; the same line with --run {shlex.quote(folder.name)} goes on"


def _rescue(run: Training, saver: Saver, folder: RunFolder, runtime: Runtime, stop: StopFlag, board: Board) -> int:
    """In the watchdog's thread, once the main thread came out of nothing: save what is finished. Returns the exit code."""
    stopped = words_of_a_stop(folder, stop, board)
    left = f"rank {runtime.rank} on {runtime.host}: its main thread waits for what does not come, and was left there"
    words = stopped or record_failure(folder, runtime, left, victim=True)
    if words in (stopped, left):  # else the watchdog has said it
        print(f"samestep: {words}", file=sys.stderr, flush=True)
    if run.optimizer.device.type == "cuda":
        torch.cuda.set_device(run.optimizer.device)  # each thread has one of its own
    saver.give_up()
    run.checks.proof = NoProof()
    save_what_is_finished(run, saver, folder, runtime, board, _BETWEEN_STEPS_S)
    with contextlib.suppress(Exception):
        run.reports.tracker.close(patience_s=5.0)
    if runtime.is_main or stopped:
        folder.write_state(status="stopped" if stopped else "failed", reason=words)
    return Stopped.exit_code if stopped else 1
