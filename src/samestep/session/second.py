"""A second start of a run, in processes that have seen none of it: forked before the run began, asked at its end.

What a task remembers anywhere in its process is not there. From the last checkpoint it computes what a start would compute, and
so finds state that has come to matter and stays, of which no step computed again can tell. There are two: one begins with
the next step, the other with an evaluation and a later step, for the rows of each may bring to a task's mind what the next
should not know.
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

_SHARE = 0.005  # of a run's CPU time that it may take
_ALWAYS_S = 2.0  # which it may take of any run; CPU time again, of which other processes take none
_TIMES_A_CHECKPOINT = 4  # of memory
_NUM_ORDERS = 2
_PATIENCE = 30  # times what a start took, by the clock: others may want the processors too


class NoSecondStart:
    """Finds nothing."""

    def started(self) -> None: ...

    def find(self, folder: RunFolder) -> str | None:
        """Why nothing was looked for, if somebody might expect it."""
        return None

    def close(self) -> None: ...


class SecondStart(NoSecondStart):
    """The process, which waits. Raises TrainingError at the end for a run that a start of its own does not go on with."""

    def __init__(self, config: Config) -> None:
        self._begun = time.process_time()
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
        self._took_s = time.process_time() - self._begun

    def find(self, folder: RunFolder) -> str | None:
        """Raise TrainingError if a start from the last checkpoint goes on otherwise; return why it could not be looked at."""
        if self._took_s > max(_ALWAYS_S, _SHARE * (time.process_time() - self._begun)):
            return f"a start takes {self._took_s:.3g} s, more than {_SHARE:.1%} of this run"
        if not _has_room(folder):
            return "there is no memory for another one beside it"
        answers = self._answers(folder)
        for lines in answers:
            for line in lines:
                raise TrainingError(f"all steps are taken and saved, and another start of this run goes on otherwise: {line}")
        return None if len(answers) == _NUM_ORDERS else "it gave no answer"

    def _answers(self, folder: RunFolder) -> list[list[str]]:
        found = b""
        until = time.monotonic() + max(_ALWAYS_S, self._took_s) * _PATIENCE
        with contextlib.suppress(OSError):  # somebody may have ended them
            os.write(self._ask, os.fsencode(folder.path.absolute()))
            while select.select([self._answer], [], [], max(0.0, until - time.monotonic()))[0]:
                some = os.read(self._answer, 1 << 16)
                if not some:
                    break
                found += some
        with contextlib.suppress(ValueError):  # of one that the patience cut off
            return [json.loads(answer) for answer in found.splitlines()]
        return []

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
    return _NUM_ORDERS * _TIMES_A_CHECKPOINT * size < psutil.virtual_memory().available


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
            backwards = os.fork() == 0
            end_with_parent()
            lines = _refusal(config, RunFolder(Path(os.fsdecode(name))), backwards)
            os.write(up, json.dumps(lines).encode() + b"\n")
            if not backwards:
                os.wait()
    finally:
        os._exit(0)


def _refusal(config: Config, folder: RunFolder, backwards: bool) -> list[str]:
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
        run.checks.begin_start(step, False, backwards)
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
