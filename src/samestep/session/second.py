"""A second start of a run, in a process that has seen none of it: forked before the run began, asked at its end.

What a task remembers anywhere in its process is not there. From the last checkpoint it computes what a start would compute, and
so finds state that has come to matter and stays, of which no step computed again can tell.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import threading
import time
import warnings
from pathlib import Path

import psutil
import torch

from samestep.checkpoint import Checkpoints, read
from samestep.config import Config
from samestep.control import StopFlag
from samestep.errors import TrainingError, UsageError
from samestep.run.folder import RunFolder
from samestep.runtime import end_with_parent, leave_the_others, read_runtime
from samestep.session.accelerator import make_accelerator
from samestep.session.build import Plans, build
from samestep.task.loading import load_task
from samestep.tracking import NullTracker

_SHARE = 0.005  # of a run's time that it may take
_ALWAYS_S = 1.0  # which it may take of any run
_TIMES_A_CHECKPOINT = 4  # of memory
_PATIENCE = 10  # times what a start took


class NoSecondStart:
    """Finds nothing."""

    def started(self) -> None: ...

    def find(self, folder: RunFolder) -> None: ...

    def close(self) -> None: ...


class SecondStart(NoSecondStart):
    """The process, which waits. Raises TrainingError at the end for a run that a start of its own does not go on with."""

    def __init__(self, config: Config) -> None:
        self._begun = time.monotonic()
        self._took_s = 0.0
        down, self._ask = os.pipe()
        self._answer, up = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads: those that are there are no Python's
            self._pid = os.fork()
        if self._pid == 0:
            os.close(self._ask)
            os.close(self._answer)
            _serve(config, down, up)
        os.close(down)
        os.close(up)

    def started(self) -> None:
        """All is built, and the first step is next: so long does a start take."""
        self._took_s = time.monotonic() - self._begun

    def find(self, folder: RunFolder) -> None:
        """Raise TrainingError if a start from the last checkpoint goes on otherwise, as time and memory allow to look."""
        has_time = self._took_s <= max(_ALWAYS_S, _SHARE * (time.monotonic() - self._begun))
        if not (has_time and _has_room(folder)):
            return
        found = b""
        with contextlib.suppress(OSError):  # somebody may have ended it
            os.write(self._ask, os.fsencode(folder.path.absolute()))
            ready, _, _ = select.select([self._answer], [], [], max(_ALWAYS_S, self._took_s) * _PATIENCE)
            found = os.read(self._answer, 1 << 16) if ready else b""
        lines = json.loads(found) if found else []
        if lines:
            raise TrainingError(f"all steps are taken and saved, and another start of this run goes on otherwise: {lines[0]}")

    def close(self) -> None:
        """End the process, if it is still there."""
        for handle in (self._ask, self._answer):
            with contextlib.suppress(OSError):
                os.close(handle)
        with contextlib.suppress(OSError):
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)


def _has_room(folder: RunFolder) -> bool:
    """Whether the memory holds a run of this size once more, with gradients and what is read of the checkpoint."""
    newest = max(folder.checkpoints.glob("step-*"), default=None)
    size = sum(file.stat().st_size for file in newest.iterdir()) if newest is not None else 0
    return _TIMES_A_CHECKPOINT * size < psutil.virtual_memory().available


def _serve(config: Config, down: int, up: int) -> None:
    """The process itself, from the fork to its end."""
    try:
        for number in StopFlag.SIGNALS:  # they come to a whole group of processes, and are for the run
            signal.signal(number, signal.SIG_IGN)
        end_with_parent()
        name = os.read(down, 1 << 16)
        if name:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
            os.write(up, json.dumps(_refusal(config, RunFolder(Path(os.fsdecode(name))))).encode())
    finally:
        os._exit(0)


def _refusal(config: Config, folder: RunFolder) -> list[str]:
    """The lines in which a start from the last checkpoint refuses to go on; none if it would, or cannot be tried."""
    leave_the_others()
    runtime = read_runtime()
    accelerator, task = make_accelerator(config), load_task(config.task, config.fields)
    checkpoint, step, _ = Checkpoints(folder, config.checkpoint.keep).newest()
    if checkpoint is None:
        return []
    plans = Plans(task, accelerator, runtime, StopFlag(), read(checkpoint), [runtime.host])
    try:
        run = build(config, plans, lambda _: NullTracker())
        run.checks.begin_start(step, may_part=False)
    except UsageError as error:
        return list(error.lines)
    return []


def second_start(config: Config, is_main: bool) -> NoSecondStart:
    """One to ask later, where it can be had: of rank 0, on a CPU, without threads that a fork would leave in the middle."""
    looks = is_main and config.is_audited and not config.shard
    can_fork = hasattr(os, "fork") and threading.active_count() == 1
    if looks and can_fork and (config.device == "cpu" or not torch.cuda.is_available()):
        return SecondStart(config)
    return NoSecondStart()
