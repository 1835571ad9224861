"""The watch over a step that hangs: it says where every rank stands, names the culprit, and ends the process."""

from __future__ import annotations

import collections
import contextlib
import faulthandler
import json
import os
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from samestep.control.abort import abort_collectives, allow, break_connections
from samestep.control.board import Board, NoBoard
from samestep.control.culprits import ASKING_AGAIN, MEETING, SAVING, TORN_OUT, Table
from samestep.control.living import Living
from samestep.control.progress import Progress
from samestep.control.store_wait import store_wait

_BEAT_S = 1.0
_FIRST_STEP = 10  # the first may compile, build caches and open files
_SLOWEST_OF_MEDIAN = 20
_TORN_OUT_S = 5.0  # of the 30 s after which torchrun kills; then somebody else saves
_BEGINNING = "beginning a step"  # an audit reads rows and computes then
_READING = "reading data"
_DEBUGGERS = ("bdb.py", "pdb.py", "pydevd.py")


class Watchdog:
    """Fires when nothing has moved for longer than max(`limit_s`, 20 × the median step), ten times that in the first step.

    The culprits end at once; those that wait for them are torn out of their collective, and their main thread raises.

    Each rank writes a beat on the board every second: step, what it is doing, since when. A rank whose beats have ended is
    stopped or lost; else those that do not wait for the others are the ones that all wait for. Should all seem to wait,
    it is those that are a step behind. If there is none, as where the network has lost a message, nobody is to blame: all are
    torn out. Where a rank has died, the others are torn out at once. A main thread that comes out of nothing, as one that waits
    in C, stays where it is: this thread saves what is finished, and ends the process.

    Args:
        limit_s: 0 switches it off.
        accuse: called with a paragraph that names the culprits, and their ranks and hosts, before the process ends.
        mourn: the same of ranks that have died.
        verdict: a file that appears when the job has lost a node: what waits for it must not wait any longer.
        store_port: of the launcher's store.
    """

    def __init__(
        self,
        limit_s: float,
        rank: int,
        world_size: int,
        host: str,
        board: Board,
        log: Path,
        accuse: Callable[[str, dict[int, str]], None],
        mourn: Callable[[str, dict[int, str]], None] = lambda paragraph, dead: None,
        verdict: Path | None = None,
        store_port: int | None = None,
    ) -> None:
        self._limit_s, self._rank, self._host, self._board, self._log = limit_s, rank, host, board, log
        self._world_size, self._accuse, self._mourn = world_size, accuse, mourn
        self._living = Living(board, rank, world_size, host, limit_s / 2)
        self.is_overdue: Callable[[], bool] = lambda: False  # asked to stop, so long ago that whoever asked is about to kill
        self.rescue: Callable[[], int] = lambda: 1  # saves what is finished, in this thread; gives the exit code
        self._is_leaving = False
        self.progress: Progress | None = None  # of the device, where there is one
        self._verdict = verdict
        self.stores = set() if store_port is None else {store_port}  # ports of those that are needed once ranks are torn out
        self._beats = 0
        self._step, self._phase, self._since = 0, "starting", time.monotonic()
        self._entered = self._since  # the phase; what `_since` has is moved on while nothing can hang
        self._step_began: float | None = None
        self.read_s = 0.0  # this rank's time in waiting for data, all steps together
        self._steps_s: collections.deque[float] = collections.deque(maxlen=200)
        self._main = threading.main_thread().ident
        self.has_torn_out = False  # what this rank raises now, or takes for a loss, is the collective's end
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    @classmethod
    def off(cls) -> Watchdog:
        """One that watches nothing."""
        return cls(0, 0, 1, "", NoBoard(), Path(os.devnull), lambda paragraph, culprits: None)

    def start(self) -> None:
        if self._limit_s or self._verdict:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            self._beat()
            self._living.announce()
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            faulthandler.cancel_dump_traceback_later()

    def step(self, step: int) -> None:
        """Step `step` (from 0) begins."""
        now = time.monotonic()
        if self._step_began is not None:
            self._steps_s.append(now - self._step_began)
        self._step, self._step_began = step, now
        self.at(_BEGINNING)

    @property
    def step_began(self) -> float:
        """When this step began, on the monotonic clock; 0 before the first."""
        return self._step_began or 0.0

    def at(self, phase: str) -> None:
        """This rank has got as far as `phase` now."""
        if self._is_leaving and threading.get_ident() == self._main:  # back too late: what it would write is being saved
            threading.Event().wait()
        now = time.monotonic()
        if self.progress is not None and phase != _READING:  # of which the device knows nothing
            self.progress.record(self._step + 1, phase)
        if self._phase == _READING:
            self.read_s += now - self._entered
        self._phase, self._since, self._entered = phase, now, now

    def meeting(self) -> None:
        """From here on this rank waits for the others."""
        self.at(MEETING)

    @property
    def current_step(self) -> int:
        """The step that has begun, from 0."""
        return self._step

    def saving(self) -> None:
        """From here on this rank saves, or waits for the one that does: that takes as long as the disk takes."""
        self.at(SAVING)

    @property
    def slow_step_s(self) -> float:
        """The 99th percentile of the steps' times, without the first; 0 before there are any."""
        known = sorted(list(self._steps_s)[1:])
        return known[int(len(known) * 0.99)] if known else 0.0

    def _patience_s(self) -> float:
        if not self._steps_s:
            return self._limit_s * _FIRST_STEP
        return max(self._limit_s, _SLOWEST_OF_MEDIAN * statistics.median(self._steps_s))

    def _watch(self) -> None:
        with self._log.open("a") as log:
            while not self._ended.wait(_BEAT_S):
                self._beat()
                if self._verdict is not None and self._verdict.exists():
                    self._tear_out(loopback=False)
                    return
                if dead := self._living.dead() if self._limit_s else {}:
                    names = " and ".join(f"rank {rank} on {host}" for rank, host in sorted(dead.items()))
                    self._mourn(f"{names} ended without a word: killed, or out of memory", dead)
                if dead or (self.is_overdue() and self._phase != SAVING):
                    self._tear_out()
                    return
                patience_s = self._patience_s()
                allow(2 * patience_s)
                if self._debugged() or not self._limit_s or self._shown_phase in (SAVING, ASKING_AGAIN):
                    self._since = time.monotonic()
                    faulthandler.cancel_dump_traceback_later()
                    continue
                # Should something hold Python's lock, this thread stops too, and only the one in C is left.
                faulthandler.dump_traceback_later(2 * patience_s + 10, exit=True, file=log)
                if time.monotonic() - self._since > patience_s:
                    faulthandler.dump_traceback(file=log, all_threads=True)
                    if self._fire(patience_s):
                        return
                    self._since = time.monotonic()

    def _beat(self) -> None:
        self._beats += 1
        phase = self._shown_phase
        behind = None
        if self.progress is not None and phase not in (SAVING, ASKING_AGAIN, TORN_OUT):
            behind = self.progress.behind()
        step, phase = behind or (self._step + 1, phase)
        words = {
            "step": step,
            "phase": phase,
            "device": behind is not None,
            "host": self._host,
            "for_s": round(time.monotonic() - self._since),
            "beat": self._beats,
        }
        self._board.write("beat", self._rank, json.dumps(words))

    @property
    def _shown_phase(self) -> str:
        """A store in trouble is no hang: whoever reads from it gives up by himself."""
        return ASKING_AGAIN if store_wait.is_on and self._phase in (_BEGINNING, _READING) else self._phase

    def _debugged(self) -> bool:
        """Whether somebody stands in a debugger: then nothing hangs."""
        frame: FrameType | None = sys._current_frames().get(self._main or 0)
        while frame is not None:
            if frame.f_code.co_filename.endswith(_DEBUGGERS):
                return True
            frame = frame.f_back
        return False

    def _fire(self, patience_s: float) -> bool:
        """Name the culprits and end this process or its wait; False if it has moved on, or one saves or asks a store again."""
        before = self._board.read("beat")
        for _ in range(5):
            time.sleep(0.5 * _BEAT_S)
            self._beat()
        if self._ended.is_set() or time.monotonic() - self._since < patience_s:
            return False
        table = Table(before, self._board.read("beat"), self._rank, self._world_size)
        if table.is_patient:
            return False
        culprits = table.culprits
        self._accuse(table.paragraph(patience_s, self._log), table.hosts(culprits))
        if self._rank not in culprits or len(culprits) == self._world_size > 1:  # torn out of a wait, it saves what it can
            self._tear_out()
        elif self._world_size == 1:
            self._end(self.rescue)
        self._end(lambda: 1)
        return True

    def _tear_out(self, loopback: bool = True) -> None:
        """Break the collectives. A main thread that is not out of them soon, and does not save, is left where it is."""
        self.has_torn_out = True
        if self._phase != SAVING:
            self._phase = TORN_OUT
        self._beat()
        faulthandler.cancel_dump_traceback_later()
        if self._world_size > 1:
            abort_collectives()
            if not self._ended.wait(_BEAT_S):  # most are out by now: a dead peer's connections have ended by themselves
                break_connections(self.stores, loopback)
        while not self._ended.wait(_TORN_OUT_S):
            if self._phase != SAVING:
                self._end(self.rescue)

    def _end(self, last: Callable[[], int]) -> None:
        """End the process with the exit code that `last` gives, unless the main thread has come out meanwhile."""
        if self._ended.is_set():
            return
        self._is_leaving = True
        code = 1
        try:
            code = last()
        except Exception:
            with self._log.open("a") as log:
                traceback.print_exc(file=log)
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(code)
