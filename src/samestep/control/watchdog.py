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
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from samestep.control.abort import break_collectives
from samestep.control.board import Board, NoBoard
from samestep.control.store_wait import store_wait

_BEAT_S = 1.0
_FIRST_STEP = 10  # the first may compile, build caches and open files
_SLOWEST_OF_MEDIAN = 20
_TORN_OUT_S = 10.0
_BEGINNING = "beginning a step"  # an audit reads rows and computes then
_READING = "reading data"
_ASKING_AGAIN = "reading data, and the store has to be asked again"
_MEETING = "meeting the other ranks"
_TORN_OUT = "torn out of a meeting"
_SAVING = "saving"
_DEBUGGERS = ("bdb.py", "pdb.py", "pydevd.py")


class Watchdog:
    """Fires when nothing has moved for longer than max(`limit_s`, 20 × the median step), ten times that in the first step.

    The culprits end at once; those that wait for them are torn out of their collective, and their main thread raises.

    Each rank writes a beat on the board every second: step, what it is doing, since when. A rank whose beats have ended is
    stopped or lost; else those that do not wait for the others are the ones that all wait for. Should all seem to wait,
    it is those that are a step behind. If there is none, as where the network has lost a message, nobody is to blame: all are
    torn out.

    Args:
        limit_s: 0 switches it off.
        accuse: called with a paragraph that names the culprits, and their ranks and hosts, before the process ends.
        verdict: a file that appears when the job has lost a node: what waits for it must not wait any longer.
        store_port: of the launcher's store, which is spared then.
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
        verdict: Path | None = None,
        store_port: int | None = None,
    ) -> None:
        self._limit_s, self._rank, self._host, self._board, self._log = limit_s, rank, host, board, log
        self._world_size, self._accuse = world_size, accuse
        self._verdict, self._store_port = verdict, store_port
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
        now = time.monotonic()
        if self._phase == _READING:
            self.read_s += now - self._entered
        self._phase, self._since, self._entered = phase, now, now

    def meeting(self) -> None:
        """From here on this rank waits for the others."""
        self.at(_MEETING)

    def saving(self) -> None:
        """From here on this rank saves, or waits for the one that does: that takes as long as the disk takes."""
        self.at(_SAVING)

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
                    self.has_torn_out = True
                    break_collectives(self._store_port)
                    return
                patience_s = self._patience_s()
                if self._debugged() or not self._limit_s or self._shown_phase in (_SAVING, _ASKING_AGAIN):
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
        words = {
            "step": self._step + 1,
            "phase": self._shown_phase,
            "host": self._host,
            "for_s": round(time.monotonic() - self._since),
            "beat": self._beats,
        }
        self._board.write("beat", self._rank, json.dumps(words))

    @property
    def _shown_phase(self) -> str:
        """A store in trouble is no hang: whoever reads from it gives up by himself."""
        return _ASKING_AGAIN if store_wait.is_on and self._phase in (_BEGINNING, _READING) else self._phase

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
        table = {rank: json.loads(text) for rank, text in self._board.read("beat").items()}
        unheard = {"step": 0, "phase": "starting", "host": "a host that was never heard of", "for_s": 0}
        table = {rank: table.get(rank, unheard) for rank in range(self._world_size)}
        frozen = [
            rank
            for rank, at in table.items()
            if rank != self._rank
            and at["phase"] != _TORN_OUT  # by its own watchdog, and beats no more
            and ("beat" not in at or json.loads(before.get(rank, "{}")).get("beat") == at["beat"])
        ]
        late = [rank for rank in table if table[rank]["phase"] not in (_MEETING, _TORN_OUT) and rank not in frozen]
        if not late and len({at["step"] for at in table.values()}) > 1:  # all have come to the meeting that one is still in
            late = list(table)
        behind = min((table[rank]["step"] for rank in late), default=0)
        culprits = frozen or [rank for rank in late if table[rank]["step"] == behind]
        if self._world_size == 1:
            culprits = [self._rank]
        if any(table[rank]["phase"] in (_SAVING, _ASKING_AGAIN) for rank in culprits) and not frozen:
            return False
        words = [] if culprits else ["all ranks wait for each other, as where a message is lost"]
        for rank in culprits:
            at = table[rank]
            doing = "does not answer any more, last seen" if rank in frozen else "has been"
            words.append(f"rank {rank} on {at['host']} {doing} {at['phase']} in step {at['step']}")
        lines = [
            f"  rank {rank} on {at['host']}: step {at['step']}, {at['phase']} for {at['for_s']} s"
            + (" (silent)" if rank in frozen else "")
            for rank, at in sorted(table.items())
        ]
        self._accuse(
            "\n".join(
                [
                    f"{'; '.join(words)}: nothing has moved for {patience_s:.0f} s. Every thread's stack is in {self._log}",
                    *lines,
                ]
            ),
            {rank: str(table[rank]["host"]) for rank in culprits},
        )
        if self._rank not in culprits or len(culprits) == self._world_size > 1:  # torn out of a wait, it saves what it can
            self.has_torn_out, self._phase = True, _TORN_OUT
            self._beat()
            break_collectives(self._store_port, loopback=True)
            self._ended.wait(_TORN_OUT_S)
        if not self._ended.is_set():
            with contextlib.suppress(Exception):
                sys.stdout.flush()
            os._exit(1)
        return True
