"""A tracker beside metrics.jsonl, in a thread of its own."""

from __future__ import annotations

import dataclasses
import queue
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from samestep.run.metric_rows import Row, parsed


class Sink(Protocol):
    """What a tracker is to samestep; it is made with a `RunInfo`, and all three are called in one thread."""

    def row(self, values: Row) -> None:
        """A step's numbers by their names, `step` among them, from 1; what the task shows at the end is text, as `shown`."""

    def close(self) -> str | None:
        """The run ends. What is returned is printed."""


@dataclasses.dataclass(frozen=True)
class RunInfo:
    """What a tracker is told of a run."""

    name: str
    path: Path  # of its folder
    config: dict[str, Any]
    id: str  # the same for the whole life of the run
    group: str | None  # the same for all runs of a sweep
    first_step: int  # the rows of later steps come again, or for the first time
    kept_bytes: int = 0  # of metrics.jsonl when this start began
    fork: tuple[str, int] | None = None  # in a branch's first start: its parent's `id`, and the step that it goes on from

    def rows(self, since: int = 0) -> Iterator[Row]:
        """What earlier starts have recorded, from the rows of step `since` to those of `first_step`."""
        if not self.kept_bytes:
            return
        with (self.path / "metrics.jsonl").open("rb") as file:
            while file.tell() < self.kept_bytes and (line := file.readline()):
                row = parsed(line.decode())
                if row is not None and row["step"] >= since:
                    yield {key: float("nan") if value is None else value for key, value in row.items()}


class Background:
    """Feeds a tracker from a thread: no step waits for it, and what goes wrong there ends in one line, never in the run.

    Args:
        pause_s: between one lot of rows and the next, for a tracker that can be told later what a kill has kept from it:
            two threads that take turns for every row cost each other much more time than a row takes.
    """

    def __init__(self, name: str, make: Callable[[], Sink], say: Callable[[str], None], pause_s: float = 0.0) -> None:
        self._name, self._make, self._say, self._pause_s = name, make, say, pause_s
        self._rows: queue.SimpleQueue[Row | None] = queue.SimpleQueue()
        self._is_ending = threading.Event()
        self._last_words: str | None = None
        self._is_left = False  # whatever it says now would come after the run's last line
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def row(self, values: Row) -> None:
        if self._thread.is_alive():
            self._rows.put(values)

    def close(self, patience_s: float) -> None:
        self._rows.put(None)
        self._is_ending.set()
        self._thread.join(patience_s)
        if self._thread.is_alive():
            self._is_left = True
            self._say(f"{self._name} did not finish within {patience_s:.0f} s; metrics.jsonl has every row")
        elif self._last_words:
            self._say(self._last_words)

    def _work(self) -> None:
        try:
            sink = self._make()
            while (values := self._rows.get()) is not None:
                sink.row(values)
                if self._pause_s and self._rows.empty():
                    self._is_ending.wait(self._pause_s)
            self._last_words = sink.close()
        except (Exception, SystemExit) as error:
            if self._is_left:
                return
            words = textwrap.shorten(str(error), 200, placeholder=" …")
            self._say(
                f"{self._name} stopped ({type(error).__name__}: {words}); the run goes on, and metrics.jsonl has every row"
            )
