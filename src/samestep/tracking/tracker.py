"""What a run shows while it trains: a bar on a terminal, or plain lines in a log."""

from __future__ import annotations

import collections
import functools
import math
import sys
import time

from tqdm import tqdm

from samestep.config import Track
from samestep.run.folder import RunFolder
from samestep.run.metric_rows import Row
from samestep.tracking.background import Background, RunInfo
from samestep.tracking.bar import Bar
from samestep.tracking.metrics_file import Metrics
from samestep.tracking.other_trackers import find_tracker
from samestep.tracking.wandb_run import WandbRun, wandb_mode

RECENT_ROWS = 8  # kept in every checkpoint, for the case that rank 0 dies between a step and its row


class Tracker:
    """What rank 0 records and shows. The other ranks have a `NullTracker`, so that nobody asks who they are."""

    def __init__(self, settings: Track, run: RunInfo, num_steps: int, unit: str) -> None:
        self._unit, self._num_steps, self._first_step = unit, num_steps, run.first_step
        self._others = [Background(name, functools.partial(find_tracker(name), run), self.line) for name in settings.also]
        if (mode := wandb_mode(settings.wandb)) != "off":
            self._others.append(Background("wandb", lambda: WandbRun(run, mode), self.line, pause_s=0.5))
        self._sinks: list[Metrics | Background] = [Metrics(RunFolder(run.path), self.line), *self._others]
        self._bar = Bar(num_steps, run.first_step, unit) if sys.stderr.isatty() else None
        self._begun = self._shown = time.monotonic()
        self._counted = 0.0
        self.last: Row = {}
        self.recent: collections.deque[Row] = collections.deque(maxlen=RECENT_ROWS)

    def line(self, text: str) -> None:
        """Print a line above the bar."""
        with tqdm.external_write_mode(file=sys.stdout, nolock=False):
            print(text, flush=True)

    def step(self, row: Row, weight: float) -> None:
        """Record a tracked step; `weight` is what the steps since the last one came to (tokens, samples)."""
        for sink in self._sinks:
            sink.row(row)
        self.last.update(row)
        self.recent.append(row)
        self._counted += weight
        self._show(row)

    def evaluated(self, row: Row) -> None:
        for sink in self._sinks:
            sink.row(row)
        self.last.update(row)
        self.recent.append(row)
        for key, value in row.items():
            if key[:5] == "eval_" and math.isnan(value):
                self.line(f"WARNING: {key} is nan at step {row['step']}: no row counts for it (weight 0), or its sum is nan")
        words = [f"{key} {value:.4f}" for key, value in row.items() if key[:5] == "eval_"]
        if self._bar is not None:
            self._bar.evaluated(words)
        self.line("  ".join([f"step {row['step']}", *words]))

    def doing(self, state: str) -> None:
        """What the run does now: running, evaluating, saving or stopping."""
        if self._bar is not None:
            self._bar.doing(state)

    def shown(self, step: int, text: str) -> None:
        """Print what the task shows of its trained model, and hand it to the trackers that keep text."""
        if text:
            self.line(text)
            for tracker in self._others:
                tracker.row({"step": step, "shown": text})

    def _show(self, row: Row) -> None:
        now = time.monotonic()
        rate = self._counted / max(now - self._begun, 1e-9)
        if self._bar is not None:
            self._bar.step(row)
        elif now - self._shown > 10 or row["step"] == self._num_steps:
            done = row["step"] - self._first_step
            left = (now - self._begun) / done * (self._num_steps - row["step"])
            self.line(
                f"step {row['step']}/{self._num_steps}  loss {row['loss']:.4f}  {done / (now - self._begun):.1f} steps/s  "
                f"{rate:,.0f} {self._unit}/s  {left:.0f} s left"
            )
            self._shown = now

    def close(self, patience_s: float) -> None:
        """Write what is left, and wait so many seconds for what goes over a network."""
        if self._bar is not None:
            self._bar.close()
        for sink in self._sinks:
            sink.close(patience_s)


class NullTracker:
    """Records and shows nothing."""

    def __init__(self) -> None:
        self.last: Row = {}
        self.recent: collections.deque[Row] = collections.deque(maxlen=RECENT_ROWS)

    def line(self, text: str) -> None: ...

    def step(self, row: Row, weight: float) -> None:
        self.last.update(row)
        self.recent.append(row)

    def evaluated(self, row: Row) -> None:
        self.last.update(row)
        self.recent.append(row)

    def doing(self, state: str) -> None: ...

    def shown(self, step: int, text: str) -> None: ...

    def close(self, patience_s: float) -> None: ...
