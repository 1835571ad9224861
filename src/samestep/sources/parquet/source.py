"""Rows of Parquet files that need not fit on this machine's disk, on it or behind a URL, by their numbers."""

from __future__ import annotations

import os
import platform
import re
import shutil
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from samestep.errors import TrainingError, UsageError
from samestep.randomness.block_order import BlockOrder
from samestep.randomness.order import Integers
from samestep.sources.arrow import Array
from samestep.sources.parquet.footers import decode, digest, fetch, read_footers
from samestep.sources.parquet.row_groups import USED, GroupFiles, OpenGroups, locked
from samestep.sources.parquet.rows import ParquetRows
from samestep.sources.parquet.store import File, Store
from samestep.sources.source import Source
from samestep.task import Task

_WINDOW_BYTES = 64 * 2**20
_FEWEST, _MOST = 4, 256  # row groups of a window, where nobody says how many
_WINDOWS_KEPT = 2  # the one that is read, and the next
_UNUSED_S = 24 * 3600.0  # after which a source's row groups are cleared away when another begins
_LISTED = 256  # files, or runs of files, that the identity tells apart
_DECODED_AGAIN = 3
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


class Parquet(Source):
    """Parquet files as rows: `{column: value}`, numbers and lists of numbers as numpy's, the rest as Python's.

    The order of rows has two levels: the row groups of all files are permuted anew each epoch and dealt into windows, and
    the rows of a window are permuted among themselves. Any position's row is arithmetic on the files' footers, which are
    read once and kept. Row groups are read ahead, decoded once for all processes of a machine, and kept on its disk, in the
    cache of `datasets` ($HF_DATASETS_CACHE), up to `cache`.

    Args:
        paths: of a file, a folder or a glob, or a URL that fsspec opens: https://, s3://, gs://, hf://datasets/…; or a list.
        columns: the names of those to read; None for all.
        cache: the most that may lie on the disk, in bytes or like "2GB"; it must hold two windows.
        window: how many row groups are shuffled among each other; None for as many as make 64 MB, from 4 to 256.
        storage_options: of fsspec's file system: keys, an endpoint.

    Raises UsageError for paths without Parquet files, files of different columns, and a cache that is too small. Reading a
    row raises it for a file that has changed since; a store in trouble is asked again for 15 minutes, then TrainingError.
    """

    def __init__(
        self,
        paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        columns: Sequence[str] | None = None,
        cache: str | int = "2GB",
        window: int | None = None,
        storage_options: dict[str, Any] | None = None,
    ) -> None:
        given = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
        places = [os.path.expanduser(os.fspath(place)) for place in given]
        if not places:
            raise UsageError("data: samestep.Parquet found no path; write one, a folder, a glob or a URL")
        if window is not None and window < 1:
            raise UsageError(f"data: samestep.Parquet: window: found {window}; write how many row groups to shuffle at a time")
        limit, folder = _bytes(cache), _cache()
        self._telling, self._teller = ExitStack(), folder / "telling" / f"{platform.node()}-{digest(*places)}.lock"
        self._store = Store(storage_options or {}, self._may_tell)
        files = self._store.find(places)
        names = [columns] if isinstance(columns, str) else None if columns is None else list(columns)
        try:
            self._footers = found = read_footers(self._store, files, names, folder / "footers")
        except PermissionError as error:
            words = f"found no way to write to {folder} ({error.strerror}), where footers and row groups are kept"
            raise UsageError(
                f"data: samestep.Parquet: {words}; set HF_DATASETS_CACHE to a folder that can be written"
            ) from None
        self._names = found.schema.names
        self._window = min(
            len(found.rows), window or int(np.clip(_WINDOW_BYTES // max(1, int(found.size.mean())), _FEWEST, _MOST))
        )
        self._num_rows = int(found.rows.sum())
        kept = min(len(found.rows), _WINDOWS_KEPT * self._window)
        needed = int(np.sort(found.size)[-kept:].sum())
        if needed > limit:
            words = f"found {_words(limit)}, and two windows of {self._window} row groups come to {_words(needed)}"
            wanted = f'write cache="{_words(needed * 5 // 4)}", or a smaller window'
            raise UsageError(f"data: samestep.Parquet: cache: {words}; {wanted}")
        here = folder / f"rows-{platform.node()}"
        marks = [(file.name, file.version) for file in files]
        self._folder = here / digest(*marks, *self._names, found.rows.tobytes())
        self._files = GroupFiles(self._folder, limit, self._decode)
        self._limit, self._kept = limit, kept
        self._order: BlockOrder | None = None
        self._open: tuple[int, OpenGroups] | None = None
        self._files.touch()
        _clear_unused(here, self._folder)

    def __len__(self) -> int:
        return self._num_rows

    def __getitem__(self, row: int) -> dict[str, Any]:
        if not 0 <= row < self._num_rows:
            raise IndexError(row)
        (found,) = self.__getitems__([row])
        return found

    def __getitems__(self, rows: list[int]) -> list[dict[str, Any]]:
        self.columns(np.asarray(rows))
        opened = self._opened()
        return [{name: _value(opened.value(name, row)) for name in self._names} for row in rows]

    def columns(self, rows: Integers) -> tuple[dict[str, list[Array] | None], list[int], list[int]]:
        """Columns of numbers of one shape in parts, None for another; in which part each of the rows is, and where in that."""
        opened = self._opened()
        parts, places = opened.places(rows, self._upcoming)
        return opened.columns, parts, places

    def as_rows(self, task: Task, seed: int, float_dtype: torch.dtype) -> ParquetRows:
        return ParquetRows(self, task, seed, float_dtype)

    def order(self, seed: int) -> BlockOrder:
        self._order = BlockOrder(self._footers.rows, self._window, seed)
        return self._order

    def identity(self, apart: bool = False) -> dict[str, Any]:
        footers, marks = self._footers, self._footers.marks()
        where = f"up to {_words(self._limit)} of them on each machine's disk, in {self._folder}"
        return {
            "rows": len(self),
            "columns": [f"{name}: {footers.schema.field(name).type}" for name in self._names],
            "format": f"samestep.Parquet in windows of {self._window} row groups",
            "checksum": digest(*marks),
            "head": digest(marks[0], *self._names),
            "whole": False,
            "fingerprint": "",
            "files": _listed(footers.files, marks),
            "note": f"{len(footers.files)} files, {len(self)} rows in {len(footers.rows)} row groups; {where}",
        }

    def _opened(self) -> OpenGroups:
        """This process's own: what is open elsewhere does not come along with a fork."""
        if self._open is None or self._open[0] != os.getpid():
            self._open = os.getpid(), OpenGroups(self._files, self._footers.rows, self._kept + 2, self._names)
        return self._open[1]

    def _upcoming(self, group: int) -> list[int]:
        if self._order is not None and (found := self._order.upcoming()) and group in found:
            return found
        return list(
            range(group + 1, min(group + 3, len(self._footers.rows)))
        )  # read in the files' own order, as evaluation does

    def _decode(self, group: int, ended: threading.Event) -> pa.Table:
        footers, place = self._footers, int(self._footers.file_of[group])
        file, number = footers.files[place], int(footers.number_of[group])
        tail, failures = footers.tail(place), 0

        def attempt() -> pa.Table:
            nonlocal failures
            try:
                pieces = fetch(self._store, file, tail, number, self._names)
            finally:  # what has come is of the file as it was, and else we say why nothing has
                self._store.refuse_change(file)
            try:
                return decode(pieces, file, tail, number, self._names)
            except (pa.ArrowException, OSError) as error:
                failures += 1
                words = f"row group {number} cannot be decoded: {error}"
                if failures < _DECODED_AGAIN:  # maybe what came is not what lies there
                    raise OSError(words) from error
                raise TrainingError(f"data: {file.name}: {words}") from error

        return self._store.patiently(attempt, file.name, ended=ended)

    def _may_tell(self) -> bool:
        """One process of a machine, for as long as it lives."""
        return self._telling.enter_context(locked(self._teller, wait=False))


def _value(scalar: pa.Scalar) -> Any:
    """A row's value: numbers as numpy's, in their own dtype, lists of them as arrays where they are of one shape."""
    if isinstance(scalar, pa.ExtensionScalar):
        scalar = scalar.value
    found, kind = scalar.as_py(), scalar.type
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind = kind.value_type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)) or found is None:
        return found
    with suppress(ValueError, TypeError):  # uneven, or with nulls
        return np.asarray(found, kind.to_pandas_dtype())[()]
    return found


def _listed(files: list[File], marks: list[str]) -> list[list[str]]:
    """A name, what tells the file again, and when it was changed; of many files, runs of them."""
    size = -(-len(files) // _LISTED)
    local = [file.name for file in files if "://" not in file.name]
    root = os.path.commonpath([os.path.dirname(name) for name in local]) if local else ""
    names = [os.path.relpath(file.name, root) if "://" not in file.name else file.name for file in files]
    return [
        [
            names[first] if size == 1 else f"{names[first]} to {names[min(first + size, len(files)) - 1]}",
            digest(*marks[first : first + size])[:12],
            digest(*(file.version for file in files[first : first + size]))[:12],
        ]
        for first in range(0, len(files), size)
    ]


def _bytes(words: str | int) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?", str(words).strip(), re.IGNORECASE)
    if found is None or isinstance(words, bool):
        raise UsageError(f'data: samestep.Parquet: cache: found {words!r}; write a number of bytes, or "2GB"')
    return int(float(found[1]) * _UNITS[found[2].upper()])


def _words(size: int) -> str:
    unit = next(unit for unit in ("T", "G", "M", "K", "") if size >= _UNITS[unit] or not unit)
    return f"{size / _UNITS[unit]:.3g}{unit}B"


def _cache() -> Path:
    import datasets

    return Path(datasets.config.HF_DATASETS_CACHE) / "samestep-parquet"


def _clear_unused(here: Path, own: Path) -> None:
    for folder in here.iterdir():
        with suppress(OSError):
            if folder != own and time.time() - (folder / USED).stat().st_mtime > _UNUSED_S:
                shutil.rmtree(folder)
