"""Where rows go: metrics.jsonl always, and wandb beside it."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import netrc
import os
import queue
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import urlparse

from samestep.config import Config
from samestep.run_folder import RunFolder, write_atomically

Row = dict[str, Any]


def cut_back(folder: RunFolder, step: int, latest: list[Row], evaluates_again: bool) -> None:
    """Leave out the rows after a step: a killed run had gone further than its checkpoint, and will get there again.

    Args:
        latest: the checkpoint's own last rows; those that the file lacks are added, for whoever was to write them died.
        evaluates_again: the evaluation after that step is still to come: a start that died meanwhile has made it already.
    """

    def stays(row: Row) -> bool:
        return bool(row["step"] < step or (row["step"] == step and ("loss" in row or not evaluates_again)))

    lines = folder.metrics.read_text().splitlines() if folder.metrics.exists() else []
    oldest = min([step, *(row["step"] for row in latest)])
    first = len(lines)
    while first and ((row := _parsed(lines[first - 1])) is None or row["step"] >= oldest):
        first -= 1
    kept, present = lines[:first], set()  # rows stand in order: those before stay, and there may be millions
    for line in lines[first:]:
        if (row := _parsed(line)) is not None and stays(row):
            kept.append(line)
            present.add((row["step"], "loss" in row))
    kept += [as_line(row).rstrip() for row in latest if stays(row) and (row["step"], "loss" in row) not in present]
    if not lines and not kept:
        return
    write_atomically(folder.metrics, "\n".join([*kept, ""]))


def _parsed(line: str) -> Row | None:
    """None for half a line, the last of a killed process."""
    try:
        row: Row = json.loads(line)
    except ValueError:
        return None
    return row


def as_line(row: Row) -> str:
    """A row as JSON, which has no word for what is not a number."""
    return (
        json.dumps(
            {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}
        )
        + "\n"
    )


class Metrics:
    """metrics.jsonl: one row for each tracked step, written whole and at once; what finds no room waits for the next row."""

    def __init__(self, folder: RunFolder, warn: Callable[[str], None]) -> None:
        self._handle = os.open(folder.metrics, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._size = os.fstat(self._handle).st_size
        self._waiting: list[bytes] = []
        self._warn, self._has_warned = warn, False

    def log(self, row: Row) -> None:
        self._waiting.append(as_line(row).encode())
        self._write()

    def _write(self) -> None:
        data = b"".join(self._waiting)
        try:
            written = os.write(self._handle, data)
            if written < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            os.ftruncate(self._handle, self._size)  # half a row of this process's own
            if not self._has_warned:
                self._warn(f"WARNING: metrics.jsonl could not be written ({error.strerror}); its rows wait for room")
            self._has_warned = True
            return
        self._size += len(data)
        self._waiting.clear()
        self._has_warned = False

    def close(self, patience_s: float) -> None:
        if self._waiting:
            self._write()
        if self._waiting:
            self._warn(
                f"WARNING: metrics.jsonl lacks its last {len(self._waiting)} rows; the next checkpoint carries some of them"
            )
        with contextlib.suppress(OSError):
            os.fsync(self._handle)
        os.close(self._handle)


class Wandb:
    """One wandb run for the whole life of a run, fed from a thread of its own.

    Importing wandb and starting it takes about a second and a call of it 0.2 ms, none of which training waits for; and
    whatever goes wrong there, the network above all, ends in one warning line and never in the run.
    """

    def __init__(self, config: Config, mode: str, folder: RunFolder, run_id: str, warn: Callable[[str], None]) -> None:
        self._config, self._mode, self._folder, self._id, self._warn = config, mode, folder, run_id, warn
        self._rows: queue.SimpleQueue[Row | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    def log(self, row: Row) -> None:
        self._rows.put(row)

    def close(self, patience_s: float) -> None:
        self._rows.put(None)
        self._thread.join(patience_s)
        if self._thread.is_alive():
            self._warn(f"wandb did not finish within {patience_s:.0f} s; `wandb sync` sends the rest from {self._folder.wandb}")

    def _work(self) -> None:
        try:
            run = self._start()
            summary: Row = {}
            while (row := self._rows.get()) is not None:
                run.log({key: value for key, value in row.items() if key != "step"}, step=row["step"])
                summary.update(row)
            run.summary.update(summary)
            run.finish()
        except Exception as error:
            self._warn(f"wandb stopped ({type(error).__name__}: {error}); the run goes on, and metrics.jsonl has every row")

    def _start(self) -> Any:
        import wandb

        track = self._config.track
        return wandb.init(
            project=track.project,
            name=self._folder.name,
            id=self._id,
            resume="allow",
            mode=self._mode,  # type: ignore[arg-type]
            dir=str(self._folder.path),
            config=self._config.resolved(),
            tags=track.tags,
            notes=track.notes,
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
        )


def wandb_mode(asked: str) -> str:
    """online, offline or off: as `track.wandb` asks, but what the environment forbids in wandb's own words stays undone."""
    said = os.environ.get("WANDB_MODE", "").lower()
    forbidden = os.environ.get("WANDB_DISABLED", "").lower() not in ("", "0", "false", "no", "off")
    if asked == "off" or said == "disabled" or forbidden:
        return "off"
    if asked == "offline" or said in ("offline", "dryrun"):
        return "offline"
    return "online" if asked == "online" or said == "online" or _has_key() else "offline"


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
