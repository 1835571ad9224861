"""Several runs of `samestep launch` at once: started as places become free, told to stop together, each one's end noted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import IO

from samestep.errors import Stopped
from samestep.run.folder import RunFolder
from samestep.runtime import end_with_parent

_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_LOOKED_EVERY_S = 0.1
_TAIL_BYTES = 20_000
_SAID = "samestep: "


@dataclass
class Run:
    """One of the runs: what to start, and how it stands."""

    folder: RunFolder
    words: list[str]  # of `samestep launch`
    state: str = "waiting"  # then running, or stopping; in the end done, failed or stopped
    last_line: str = ""  # of what it printed, once it has ended
    process: subprocess.Popen[bytes] | None = None
    printed: IO[bytes] | None = None
    gpus: list[str] = field(default_factory=list)


def run_all(runs: list[Run], places: list[list[str]], group: str, show: Callable[[], None]) -> bool:
    """Run those that wait, one in each place at a time. Returns whether somebody asked for a stop.

    A signal is handed on to each run that lives, as often as it comes: it saves, and a second Ctrl-C ends it at once.

    Args:
        places: of each, the GPUs that its runs see; none on a machine without any.
        group: what wandb is to call the runs together.
        show: called whenever there may be something new to show.
    """
    asked: list[int] = []  # signals, in the order in which they came
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number in _SIGNALS:
        if before[number] != signal.SIG_IGN:  # under nohup
            signal.signal(number, lambda number, frame: asked.append(number))
    free, handed_on = list(places), 0
    try:
        while True:
            living = [run for run in runs if run.process is not None]
            while handed_on < len(asked):
                for run in living:
                    run.process.send_signal(asked[handed_on])  # type: ignore[union-attr]
                    run.state = "stopping"
                handed_on += 1
            for run in living:
                if _has_ended(run, asked):
                    free.insert(0, run.gpus)
            for run in [run for run in runs if run.state == "waiting"]:
                if free and not asked:
                    _start(run, free.pop(0), group)
            show()
            if all(run.process is None for run in runs) and (asked or all(run.state != "waiting" for run in runs)):
                return bool(asked)
            time.sleep(_LOOKED_EVERY_S)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _start(run: Run, gpus: list[str], group: str) -> None:
    run.gpus, run.state = gpus, "running"
    run.printed = tempfile.TemporaryFile()  # noqa: SIM115  until its last line has been read
    env = {"WANDB_RUN_GROUP": group, **os.environ}
    run.process = subprocess.Popen(
        [sys.executable, "-m", "samestep", "launch", *run.words],
        env={**env, "CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else env,
        stdin=subprocess.DEVNULL,
        stdout=run.printed,
        stderr=run.printed,
        process_group=0,  # a terminal's Ctrl-C comes to it from here
        preexec_fn=partial(end_with_parent, signal.SIGTERM),  # where this process is killed it saves, and ends its ranks
    )


def _has_ended(run: Run, asked: list[int]) -> bool:
    assert run.process is not None
    code = run.process.poll()
    if code is None:
        return False
    at_once = bool(asked) and (code < 0 or asked.count(signal.SIGINT) > 1)
    run.state = "done" if code == 0 else "stopped" if code == Stopped.exit_code or at_once else "failed"
    run.last_line = _last_line(run) or (f"it was ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}")
    run.process = None
    return True


def _last_line(run: Run) -> str:
    """The last of samestep's own lines, if there is one, and else of all."""
    assert run.printed is not None
    with run.printed as printed:
        printed.seek(max(0, printed.seek(0, os.SEEK_END) - _TAIL_BYTES))
        lines = [line.strip() for line in printed.read().decode(errors="replace").splitlines() if line.strip()]
    said = [line.removeprefix(_SAID) for line in lines if line.startswith(_SAID)]
    return next(iter([*said[-1:], *lines[-1:]]), "")
