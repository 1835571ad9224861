"""Row groups on this machine's disk, decoded: made once by whichever process comes first, mapped by all, bounded in bytes."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from samestep.randomness.order import Integers
from samestep.sources.arrow import Array, Column, as_column

USED = "used"  # a file that is as old as the last use of its folder
_THREADS = 2
_LOCKS = 64
_LAST_WORDS_S = 10.0  # for a thread that decodes as the process ends


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold a lock of this machine's processes; False if another has it and we don't wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        got = True
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            got = False
        except OSError:
            pass  # a file system without locks: some work may be done twice
        try:
            yield got
        finally:
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_UN)  # said, not left to close: a process forked meanwhile has the file too


class GroupFiles:
    """
    Args:
        limit: bytes; what was used longest ago makes room.
        decode: gives a row group, waiting with the given event where a store must be asked again.
    """

    def __init__(self, folder: Path, limit: int, decode: Callable[[int, threading.Event], pa.Table]) -> None:
        self._folder, self._limit, self._decode = folder, limit, decode

    def open(self, group: int) -> pa.Table:
        """A row group, mapped into memory; read and decoded first if it is not there."""
        path = self._path(group)
        while True:
            if (table := _mapped(path)) is not None:
                return table
            with locked(self._folder / f"{group % _LOCKS}.lock"):
                if not path.exists():
                    return self._made(group, threading.Event())

    def prepare(self, group: int, ended: threading.Event) -> None:
        """Have a row group on disk before it is asked for, unless another process is about it."""
        with locked(self._folder / f"{group % _LOCKS}.lock", wait=False) as is_mine:
            if is_mine:
                try:
                    os.utime(self._path(group))  # so that nothing makes room of it
                except FileNotFoundError:
                    self._made(group, ended)

    def touch(self) -> None:
        """Say that the folder is in use."""
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / USED).touch()

    def _path(self, group: int) -> Path:
        return self._folder / f"{group}.arrow"

    def _made(self, group: int, ended: threading.Event) -> pa.Table:
        table, path = self._decode(group, ended), self._path(group)
        try:
            with locked(self._folder / "room.lock"):
                counted, half = pa.MockOutputStream(), path.with_suffix(".half")
                _write(table, counted)
                if not self._make_room(counted.size()):
                    return table
                with pa.OSFile(str(half), "wb") as sink:
                    _write(table, sink)
                half.replace(path)
                self.touch()
        except OSError:  # no room on the disk after all: this process has it in memory
            return table
        return _mapped(path) or table

    def _make_room(self, needed: int) -> bool:
        found = []
        for entry in os.scandir(self._folder):
            if entry.name.endswith((".arrow", ".half")):
                stat = entry.stat()
                found.append((stat.st_mtime_ns, stat.st_size, entry.path))
        used = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if used + needed <= self._limit:
                break
            Path(path).unlink(missing_ok=True)
            used -= size
        return needed <= self._limit


class Ahead:
    """Threads that prepare what will be asked for next; they end when there is nothing to do."""

    def __init__(self, files: GroupFiles) -> None:
        self._files, self._lock = files, threading.Lock()
        self._wanted: list[int] = []
        self._threads: list[threading.Thread] = []
        self._ended = threading.Event()

    def want(self, groups: list[int]) -> None:
        """These and no others, the first first."""
        with self._lock:
            if not self._threads:
                atexit.unregister(self._end)
                atexit.register(self._end)
            self._wanted = groups
            while len(self._threads) < min(_THREADS, len(groups)):
                thread = threading.Thread(target=self._run, name="read-ahead", daemon=True)
                self._threads.append(thread)
                thread.start()

    def _run(self) -> None:
        while True:
            with self._lock:
                if self._ended.is_set() or not self._wanted:
                    self._threads.remove(threading.current_thread())
                    return
                group = self._wanted.pop(0)
            with contextlib.suppress(Exception):  # whoever asks for its rows is told
                self._files.prepare(group, self._ended)

    def _end(self) -> None:
        """Before Python ends: a thread must not stand in Arrow's code then."""
        self._ended.set()
        for thread in [*self._threads]:
            thread.join(_LAST_WORDS_S)


class OpenGroups:
    """The row groups that a process reads from just now; of each column, an array for each of them.

    Args:
        rows: (groups,) of each.
        most: how many are kept open.
    """

    def __init__(self, files: GroupFiles, rows: Integers, most: int, names: list[str]) -> None:
        self._files, self._most, self._names = files, most, names
        self._starts = np.cumsum(rows) - rows
        self._slots = np.full(len(rows), -1)  # which part of the columns each group is
        self._tables: dict[int, pa.Table] = {}
        self._parts: dict[int, dict[str, Column | None]] = {}
        self.columns: dict[str, list[Array] | None] = {}  # None where a group has no numbers of the same shape as the others
        self.ahead = Ahead(files)

    def places(self, rows: Integers, upcoming: Callable[[int], list[int]]) -> tuple[list[int], list[int]]:
        """Which part of each column rows stand in, and where in it; their groups are opened first.

        Args:
            upcoming: called with the last group opened, if any had to be: what will be read next.
        """
        groups = np.searchsorted(self._starts, rows, side="right") - 1
        slots = self._slots[groups].tolist()
        if -1 in slots:
            self.ahead.want([group for group in upcoming(int(groups.max())) if group not in self._tables])
            self._open(np.unique(groups).tolist())
            slots = self._slots[groups].tolist()
        return slots, (rows - self._starts[groups]).tolist()

    def value(self, name: str, row: int) -> pa.Scalar:
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._tables[group].column(name)[row - int(self._starts[group])]

    def _open(self, groups: list[int]) -> None:
        for group in groups:
            if group not in self._tables:
                table = self._files.open(group)
                self._tables[group] = table
                self._parts[group] = {name: as_column(table.column(name)) for name in self._names}
        for group in [*self._tables]:
            if len(self._tables) > self._most and group not in groups:
                del self._tables[group], self._parts[group]
                self._slots[group] = -1
        self._slots[list(self._tables)] = range(len(self._tables))
        self.columns = {name: _alike([parts[name] for parts in self._parts.values()]) for name in self._names}


def _alike(columns: list[Column | None]) -> list[Array] | None:
    known = [column.chunks[0] for column in columns if column is not None and len(column.chunks) == 1]
    if len(known) < len(columns) or len({(array.shape[1:], array.dtype) for array in known}) > 1:
        return None
    return known


def _write(table: pa.Table, sink: pa.NativeFile) -> None:
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def _mapped(path: Path) -> pa.Table | None:
    try:
        source = pa.memory_map(str(path))
        os.utime(path)
    except FileNotFoundError:
        return None
    return pa.ipc.open_file(source).read_all()
