"""A store on a folder of this machine, as fsspec reaches one, that fails where a test says so."""

from __future__ import annotations

import datetime
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec


class FaultyStore(fsspec.AbstractFileSystem):  # type: ignore[misc]
    """`faulty:///folder`. Each request is a pair of a verb (put, cat, find, rm) and a path; `fault` is called before it."""

    protocol = "faulty"
    cachable = False
    requests: list[tuple[str, str]] = []  # noqa: RUF012  # of all of them
    fault: Callable[[str, str], str | None] = staticmethod(lambda verb, path: None)  # raises, or says how a put goes wrong

    def _asked(self, verb: str, path: str) -> str | None:
        found = type(self).fault(verb, path)
        self.requests.append((verb, path))
        return found

    def put_file(self, lpath: str, rpath: str, callback: Any = None, mode: str = "overwrite", **kwargs: Any) -> None:
        how = self._asked("put", rpath)
        target = Path(self._strip_protocol(rpath))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(lpath, target)
        if how is not None:
            content = target.read_bytes()
            target.write_bytes(content[: len(content) // 2])
        if how == "cut off":
            raise ConnectionResetError("connection lost")

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        self._asked("cat", path)
        return Path(path).read_bytes()[start:end]

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        found = Path(self._strip_protocol(path))
        return {"name": str(found), "size": found.stat().st_size, "type": "directory" if found.is_dir() else "file"}

    def find(self, path: str, maxdepth: int | None = None, withdirs: bool = False, detail: bool = False, **kwargs: Any) -> Any:
        self._asked("find", path)
        return {str(file): self.info(str(file)) for file in sorted(Path(path).rglob("*")) if file.is_file()}

    def rm_file(self, path: str) -> None:
        self._asked("rm", path)
        Path(path).unlink()

    def rmdir(self, path: str) -> None:
        Path(path).rmdir()

    def modified(self, path: str) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(Path(path).stat().st_mtime, datetime.UTC)


fsspec.register_implementation("faulty", FaultyStore, clobber=True)
