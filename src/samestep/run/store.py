"""A run's folder in a store that fsspec reaches: the one place that writes there, and that reads runs there."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import xxhash

from samestep.errors import UsageError
from samestep.run.asking import asked, is_transient, opened, words_of
from samestep.run.disk import make_durable
from samestep.run.names import check_name

T = TypeVar("T")

_PART_BYTES = 1 << 24
_FIRST_WAIT_S = 0.5


class Store:
    """Where a run lies in a store: its files by their paths below the run's folder. Each method raises what fsspec raises.

    Args:
        address: of the folder of run folders, as the config has it.
        name: of the run.
        key: what a line about it begins with.

    Raises UsageError for an address that cannot be opened here.
    """

    def __init__(self, address: str, name: str, key: str = "checkpoint.copy") -> None:
        check_name(name)
        self._key = key
        if "://" in address and urlsplit(address).password:
            raise UsageError(f"{key}: found a password, which would be kept; leave it to the protocol's own settings")
        self._system, folder = opened(key, address, {})
        self._folder = folder.rstrip("/")
        self._root = f"{self._folder}/{name}"
        self.address = f"{address.rstrip('/')}/{name}"

    @property
    def local(self) -> Path | None:
        """The folder itself, where it is one of this machine's."""
        from fsspec.implementations.local import LocalFileSystem

        return Path(self._root) if isinstance(self._system, LocalFileSystem) else None

    def files(self) -> dict[str, int]:
        """What is there, by name, and its size in bytes; nothing where there is no such run."""
        self._system.invalidate_cache()
        try:
            found = self._system.find(self._root, detail=True)
        except FileNotFoundError as error:
            if is_transient(error):
                raise
            return {}
        below = {name[len(self._root) + 1 :]: int(info["size"] or 0) for name, info in found.items()}
        return {name: size for name, size in below.items() if not any(part[:1] in ("", ".") for part in name.split("/"))}

    def send(self, name: str, source: Path) -> None:
        """Write a file there: in a folder of this machine whole or not at all, elsewhere as the store has it."""
        self._write(f"{self._root}/{name}", source)

    def _write(self, path: str, source: Path) -> None:
        if self.local is None:
            self._system.put_file(str(source), path)
            return
        parent, _, last = path.rpartition("/")
        aside = f"{parent}/.{last}.{os.getpid()}.tmp"
        self._system.makedirs(parent, exist_ok=True)
        try:
            self._system.put_file(str(source), aside)
            make_durable(Path(aside))
            self._system.mv(aside, path)
        finally:
            Path(aside).unlink(missing_ok=True)
        make_durable(Path(parent))

    def read(self, name: str) -> bytes:
        """A small file's bytes."""
        return bytes(self._system.cat_file(f"{self._root}/{name}"))

    def checksum(self, name: str) -> str:
        """Of what is there, read back."""
        digest = xxhash.xxh3_128()
        self._parts(name, digest.update)
        return digest.hexdigest()

    def bring(self, name: str, to: Path) -> None:
        """Write a file of the store's here, durably."""
        to.parent.mkdir(parents=True, exist_ok=True)
        with to.open("wb") as file:
            self._parts(name, file.write)
            file.flush()
            os.fsync(file.fileno())

    def _parts(self, name: str, take: Callable[[bytes], object]) -> None:
        path = f"{self._root}/{name}"
        self._system.invalidate_cache()
        size, done = int(self._system.info(path)["size"]), 0
        while done < size:
            part = asked(self._system, path, done, min(done + _PART_BYTES, size))
            if not part:
                raise EOFError(f"{name} ends after {done} of {size} bytes")
            take(part)
            done += len(part)

    def changed_at(self, name: str) -> float | None:
        """When a file there was written, in Unix seconds, where the store tells."""
        with contextlib.suppress(Exception):
            return float(self._system.modified(f"{self._root}/{name}").timestamp())
        return None

    def remove(self, names: list[str]) -> None:
        """Remove files there, in their order, and in the end the folders that they leave empty."""
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                self._system.rm_file(f"{self._root}/{name}")
        for folder in {name.rpartition("/")[0] for name in names} - {""}:
            with contextlib.suppress(Exception):  # object stores have none
                self._system.rmdir(f"{self._root}/{folder}")

    def refuse_what_cannot_be_written(self, patience_s: float) -> None:
        """Write a file into the address, and remove it. Raises UsageError, a line, if that cannot be done."""
        path = f"{self._folder}/.samestep-{os.getpid()}-{time.time_ns()}"

        def attempt() -> None:
            with tempfile.NamedTemporaryFile() as file:
                file.write(b"is it writable?")
                file.flush()
                self._write(path, Path(file.name))
            self._system.rm_file(path)

        try:
            patiently(attempt, patience_s)
        except Exception as error:
            where = self.address.rpartition("/")[0]
            raise UsageError(f"{self._key}: {where} cannot be written, it {words_of(error)}; write another address") from None


def store_of(address: str, name: str, runs: str) -> Store:
    """A run's place in a store. Raises UsageError for one that cannot be opened here, and for the run's own folder."""
    store = Store(address, name)
    if store.local is not None and store.local.resolve() == (Path(runs) / name).resolve():
        raise UsageError(f"checkpoint.copy: found {address}, the folder of run folders itself; write another place")
    return store


def patiently(attempt: Callable[[], T], patience_s: float) -> T:
    """What `attempt` returns, tried again with longer and longer waits where waiting may help; its error in the end."""
    until, wait_s = time.monotonic() + patience_s, _FIRST_WAIT_S
    while True:
        try:
            return attempt()
        except Exception as error:
            if not is_transient(error) or time.monotonic() + wait_s > until:
                raise
        time.sleep(wait_s)
        wait_s *= 2


def is_address(run: str) -> bool:
    """Whether a run is given by its address in a store."""
    return re.match(r"[a-z][a-z0-9+.-]*://.", run) is not None
