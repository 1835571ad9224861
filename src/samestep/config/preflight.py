"""What can be known of a run before torch is imported: how its steps are shared, and whether its folder can be written."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from samestep.config import Config
from samestep.errors import UsageError
from samestep.run.store import store_of

_SIZES_SHOWN = (1, 2, 4, 8, 16, 32, 64)
_QUOTA_S = 5.0
_STORE_S = 10.0


@dataclass
class Line:
    """One thing that was looked at. `level` is ok, warning or error; an error's text says what to write."""

    level: str
    what: str
    text: str

    def __str__(self) -> str:
        return f"{self.level:<8} {self.what:<11} {self.text}"


def shown_bytes(number: float) -> str:
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} GB"


def sizes_asked(processes: str | None, nodes: int | None, here: int) -> list[int]:
    """The world sizes asked about: `1,2,4`, or so many machines like this one; UsageError if they are no numbers."""
    if processes is None:
        return [nodes * here] if nodes else []
    words = processes.split(",")
    if not all(word.strip().isascii() and word.strip().isdigit() for word in words):
        raise UsageError(f"--processes: found {processes!r}; write numbers with commas between them, 1,2,4")
    return [int(word) for word in words]


def shares(config: Config, asked: list[int], nodes: int | None, here: int) -> list[Line]:
    """How many micro-batches a process has at each world size, and how much longer a step is with a node fewer.

    Args:
        here: how many processes this machine would start, and so each of `nodes`, where no number says otherwise.
    """
    lines, leaves = [], config.num_leaves
    for size in asked or sorted({here, *(size for size in _SIZES_SHOWN if size <= min(leaves, 2 * here))}):
        if not 1 <= size <= leaves:
            words = f"found {size}, and a step has {leaves} leaves to share"
            lines.append(Line("error", "processes", f"{words}; write {leaves} or fewer, or a smaller micro_batch_size"))
            continue
        words = f"{size}: {_most(config, size)} of {config.micro_batches} micro-batches of {config.micro_batch_size} rows each"
        lines.append(Line("ok", "processes", f"{words}, at most" + (" (one for each device here)" if size == here else "")))
        if asked:
            lines += _with_a_node_fewer(config, size, nodes or math.ceil(size / here))
    return lines


def _most(config: Config, size: int) -> int:
    """The micro-batches of a step that the busiest of `size` processes has."""
    return math.ceil(config.num_leaves / size) * (config.micro_batches // config.num_leaves)


def _with_a_node_fewer(config: Config, size: int, nodes: int) -> list[Line]:
    if nodes < 2:
        return []
    left = size - math.ceil(size / nodes)
    before, after = _most(config, size), _most(config, left)
    slower = f"{after / before:.3g} times as long" if after > before else "as long as before"
    words = f"of {nodes} lost, {left} processes go on: {after} micro-batches each instead of {before}, a step takes {slower}"
    return [Line("ok", "a node", words)]


def elsewhere(config: Config) -> list[Line]:
    """Whether the store that the config names can be opened and written."""
    if config.checkpoint.address is None:
        return []
    try:
        store_of(config.checkpoint.address, "check", config.runs).refuse_what_cannot_be_written(_STORE_S)
    except UsageError as error:
        return [Line("error", *str(error).split(": ", 1))]
    return [Line("ok", "copy", f"{config.checkpoint.address} can be written")]


def nearest_folder(runs: str) -> Path:
    """The folder of run folders, or what there is above it."""
    here = Path(runs).absolute()
    return next(place for place in (here, *here.parents) if place.exists())


def room(runs: str) -> tuple[int, str]:
    """The bytes that may still be written where run folders go, and how they are known. UsageError if none may.

    A quota's own limits are shown as the site's `quota` prints them: they may be of another file system.
    """
    folder = nearest_folder(runs)
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(f"runs: {folder} can't be written ({error.strerror}); write runs=FOLDER") from None
    found = os.statvfs(folder)
    if found.f_files and not found.f_favail:
        raise UsageError(f"runs: {folder} has no room for another file (inodes); make room, or write runs=FOLDER")
    free = found.f_bavail * found.f_frsize
    return free, f"{shown_bytes(free)} free in {folder}{_quota()}"


def _quota() -> str:
    if shutil.which("quota") is None:
        return ""
    try:
        done = subprocess.run(["quota", "-w"], capture_output=True, text=True, timeout=_QUOTA_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ", and quota gives no answer"
    said = " ".join(done.stdout.split())
    return f"; quota says: {said}" if said else ""
