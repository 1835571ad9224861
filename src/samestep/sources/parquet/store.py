"""Files wherever fsspec reaches them: found, told apart, and read in ranges, with patience for a store in trouble."""

from __future__ import annotations

import concurrent.futures
import glob
import random
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from samestep.control.store_wait import store_wait
from samestep.errors import SamestepError, TrainingError, UsageError
from samestep.run.asking import ANSWER_S, FINAL_ERRORS, asked, asked_wait_s, is_transient, opened, status_of, words_of

T = TypeVar("T")
Range = tuple[int, int]  # the first byte, and the one after the last

PATIENCE_S = 900.0  # with a store that has answered before
START_PATIENCE_S = 60.0  # with one that may be mistyped
_FIRST_WAIT_S, _LONGEST_WAIT_S, _LONGEST_ASKED_S = 0.5, 30.0, 300.0
_REQUEST_BYTES = 16 * 2**20
_AT_A_TIME = 8  # requests, when there are many files to look at; stores answer 429 to more than a hundred
_VERSIONS = ("ETag", "etag", "md5Hash", "blob_id", "Content-MD5", "mtime", "LastModified", "Last-Modified", "last_modified",
             "updated")  # fmt: skip


@dataclass(frozen=True)
class File:
    """A file as it was found: `version` is its ETag, or when it was changed; nothing where the store tells neither."""

    url: str
    size: int
    version: str

    @property
    def name(self) -> str:
        """The address without what follows a question mark: a signature that changes, and is nobody's business."""
        return self.url.partition("?")[0] if "://" in self.url else self.url


class Store:
    """What fsspec opens: local paths, `https://`, `s3://`, `gs://`, `hf://` and the rest.

    Args:
        options: of fsspec's file system: keys, an endpoint.
        may_tell: whether it is this process that says once when a store has to be asked again.
    """

    def __init__(self, options: dict[str, Any], may_tell: Callable[[], bool]) -> None:
        self._options, self._may_tell = options, may_tell

    def find(self, places: Sequence[str]) -> list[File]:
        """The files of paths, folders, globs and URLs, in the order of the places, and by name within one."""
        each = self.many(
            lambda place: self.patiently(lambda: self._found(place), File(place, 0, "").name, START_PATIENCE_S), places
        )
        return [file for found in each for file in found]

    def many(self, work: Callable[[Any], T], things: Sequence[Any]) -> list[T]:
        """Do the same for many things, some at a time."""
        if len(things) == 1:
            return [work(things[0])]
        with concurrent.futures.ThreadPoolExecutor(_AT_A_TIME) as pool:
            return list(pool.map(work, things))

    def read(self, file: File, start: int, stop: int) -> bytes:
        """Some bytes of a file, in requests of a bounded size. Raises EOFError if the store gives fewer."""
        system, path = self._open(file.url)
        parts = []
        for first in range(start, stop, _REQUEST_BYTES):
            after = min(first + _REQUEST_BYTES, stop)
            part = asked(system, path, first, after)
            if len(part) != after - first:
                raise EOFError(f"{len(part)} bytes where {after - first} were asked for")
            parts.append(part)
            if after < stop:
                store_wait.expect(ANSWER_S)  # something has come
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def refuse_change(self, file: File) -> None:
        """Raise UsageError if a file is another than it was when it was found."""
        system, path = self._open(file.url)
        system.invalidate_cache()
        try:
            now = _as_file(file.url, system.info(path))
        except FileNotFoundError as error:
            if is_transient(error):
                raise
            raise UsageError(
                f"data: {file.name} has vanished since the start; put it back, and the same line goes on"
            ) from None
        if now != file:
            words = f"{file.size} bytes, {file.version or 'no version'}, then; {now.size}, {now.version or 'none'}, now"
            raise UsageError(f"data: {file.name} has changed since the start ({words}); put it back, or start a new run")

    def patiently(
        self, attempt: Callable[[], T], name: str, patience_s: float | None = None, ended: threading.Event | None = None
    ) -> T:
        """What `attempt` returns, tried again with longer and longer waits where a store fails to answer.

        Raises TrainingError when patience is at an end, and UsageError at once for what will not change by waiting.
        """
        patience_s = PATIENCE_S if patience_s is None else patience_s
        failed_at: float | None = None  # first
        wait_s, ended = _FIRST_WAIT_S, ended or threading.Event()
        while True:
            try:
                return attempt()
            except SamestepError:
                raise
            except Exception as error:
                words = words_of(error)
                if not is_transient(error):
                    if isinstance(error, FINAL_ERRORS) or status_of(error):
                        raise UsageError(f"data: {name} {words}; write a path or a URL that can be read from here") from error
                    raise
                failed_at = failed_at or time.monotonic()
                if time.monotonic() - failed_at > patience_s:
                    raise TrainingError(
                        f"data: {name} {words}, and has for {patience_s:.0f} s; the same line goes on once it can be read"
                    ) from error
                pause_s = max(wait_s * (1 + 0.25 * random.SystemRandom().random()), min(asked_wait_s(error), _LONGEST_ASKED_S))
                store_wait.expect(pause_s + ANSWER_S)
                self._tell(f"data: {name} {words}; it is asked again, for up to {patience_s:.0f} s")
                if ended.wait(pause_s):
                    raise
                wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    def _tell(self, line: str) -> None:
        if store_wait.is_first_told() and self._may_tell():
            print(f"samestep: {line}", file=sys.stderr, flush=True)

    def _open(self, url: str) -> tuple[Any, str]:
        return opened("data", url, self._options)

    def _found(self, place: str) -> list[File]:
        system, path = self._open(place)
        is_http = place.startswith("http")
        if glob.has_magic(path) and not (is_http and "*" not in path):
            infos = system.glob(path, detail=True)
        elif is_http or path.endswith(".parquet") or system.info(path)["type"] != "directory":
            return [_as_file(system.unstrip_protocol(path), system.info(path))]
        else:
            infos = {name: info for name, info in system.find(path, detail=True).items() if _is_data(name[len(path) :])}
        files = [
            _as_file(system.unstrip_protocol(name), infos[name]) for name in sorted(infos) if infos[name]["type"] == "file"
        ]
        if not files:
            raise UsageError(f"data: found no Parquet file at {place}; write a path, a folder, a glob or a URL")
        return files


def _is_data(path: str) -> bool:
    """Whether a file in a folder holds rows, and is no note of a writer's or half of one."""
    return path.endswith((".parquet", ".pq")) and not any(part.startswith(("_", ".")) for part in path.split("/"))


def _as_file(url: str, info: dict[str, Any]) -> File:
    if info.get("size") is None:
        raise UsageError(
            f"data: {url}: the server does not tell its size; write the address of one that does, or a copy's path"
        )
    version = next((f"{info[name]}" for name in _VERSIONS if info.get(name)), "")
    return File(url.removeprefix("file://"), int(info["size"]), version)
