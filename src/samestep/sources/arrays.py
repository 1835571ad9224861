"""Columns in memory, as tensors or arrays by their names: what a script that reads no files has at hand."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import xxhash

from samestep.errors import UsageError
from samestep.randomness.order import Integers
from samestep.sources.rows import Rows
from samestep.sources.source import HEAD_ROWS, SLICE_ROWS, SLICES, WHOLE_BYTES, Source
from samestep.task import Batch, Task

_AT_ONCE_BYTES = 1 << 24  # of a column that does not lie in one piece


def are_arrays(found: object) -> bool:
    """Whether it is what `Arrays` takes."""
    values = list(found.values()) if isinstance(found, Mapping) else []
    return bool(values) and all(isinstance(value, (torch.Tensor, np.ndarray)) for value in values)


class Arrays(Source):
    """Rows along the first dimension of tensors or NumPy arrays, a column each.

    Args:
        columns: of one length; they stay where they are, unless they lie on a GPU.

    Raises UsageError for columns of several lengths, and for what torch has no numbers for.
    """

    def __init__(self, columns: Mapping[str, Any]) -> None:
        self.columns = {str(name): _as_tensor(str(name), column) for name, column in columns.items()}
        self._held = {name: _selectable(column) for name, column in self.columns.items()}
        self._files = [file for column in columns.values() if (file := _file_behind(column)) is not None]
        self._numpy = {str(name) for name, column in columns.items() if isinstance(column, np.ndarray)}
        lengths = {name: len(column) for name, column in self.columns.items()}
        (first, length), *others = lengths.items()
        for name, other in others:
            if other != length:
                raise UsageError(f"data: {first} has {length} rows and {name} {other}; write columns of one length")

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {name: values[0] for name, values in self.some(np.array([row])).items()}

    def taken(self, rows: Integers) -> dict[str, torch.Tensor]:
        """Each column's values in these rows, in memory of their own."""
        wanted = torch.from_numpy(rows)
        found = {}
        for name, held in self._held.items():
            values = torch.index_select(held, 0, wanted)
            dtype = self.columns[name].dtype
            found[name] = values if values.dtype == dtype else values.view(dtype)
        return found

    def some(self, rows: Integers) -> dict[str, Any]:
        """The same, of the kinds that were given."""
        return {name: values.numpy() if name in self._numpy else values for name, values in self.taken(rows).items()}

    def as_rows(self, task: Task, seed: int, float_dtype: torch.dtype) -> Rows:
        return ArrayRows(self, task, seed, float_dtype)

    def identity(self, apart: bool = False) -> dict[str, Any]:
        length = len(self)
        whole = not self._files or sum(column.nbytes for column in self.columns.values()) <= WHOLE_BYTES
        starts = np.unique(np.linspace(0, max(0, length - SLICE_ROWS), SLICES).astype(int)).tolist()
        return {
            "rows": length,
            "columns": [
                f"{name}: {str(column.dtype).removeprefix('torch.')} {tuple(column.shape[1:])}"
                for name, column in self.columns.items()
            ],
            "format": "arrays",
            "checksum": self._checksum([range(length)] if whole else [range(start, start + SLICE_ROWS) for start in starts]),
            "head": self._checksum([range(HEAD_ROWS)]),
            "whole": whole,
            "fingerprint": "" if whole else " ".join(self._files),
        }

    def _checksum(self, slices: list[range]) -> str:
        digest = xxhash.xxh3_128()
        for rows in slices:
            for name, column in self.columns.items():
                digest.update(name.encode())
                at_once = max(1, _AT_ONCE_BYTES * max(1, len(column)) // max(1, column.nbytes))
                for some in column[rows.start : rows.stop].split(at_once):
                    digest.update(some.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return str(digest.hexdigest())


def _selectable(column: torch.Tensor) -> torch.Tensor:
    """Its bits as integers that torch can select from, where it cannot from the column's own dtype."""
    if column.dtype in (torch.uint16, torch.uint32, torch.uint64) or (column.is_floating_point() and column.itemsize == 1):
        return column.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[column.itemsize])
    return column


def _file_behind(column: Any) -> str | None:
    """What tells that the file which an array is a view of may have been written anew: its size, and when that was."""
    while isinstance(column, np.ndarray):
        if isinstance(column, np.memmap) and column.filename is not None:  # a copy of one has none
            try:
                found = os.stat(column.filename)
            except OSError:  # it is gone by now, and mapped all the same
                return ""
            return f"{found.st_size}@{found.st_mtime_ns}"
        column = column.base
    return None


def _as_tensor(name: str, column: torch.Tensor | np.ndarray[Any, Any]) -> torch.Tensor:
    if isinstance(column, np.ndarray):
        if isinstance(column, np.ma.MaskedArray):
            raise UsageError(f"data: column {name} is a masked array; leave such rows out, or write .filled(VALUE)")
        is_even = all(stride >= 0 and stride % column.itemsize == 0 for stride in column.strides)
        if not (column.dtype.isnative and column.flags.aligned and is_even):  # torch knows nothing else
            column = column.astype(column.dtype.newbyteorder("="), order="C")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of memory that cannot be written to, which nobody does
                tensor = torch.from_numpy(column)
        except TypeError:
            raise UsageError(f"data: column {name} has values of {column.dtype}; write numbers") from None
    else:
        tensor = column.detach().cpu().resolve_conj().resolve_neg()
    if tensor.layout != torch.strided or not tensor.dim():
        found = "one number" if tensor.layout == torch.strided else f"a tensor of layout {tensor.layout}"
        raise UsageError(f"data: column {name} is {found}; write a dense tensor with a row for each example")
    return tensor


class ArrayRows(Rows):
    """Rows of `Arrays`: each micro-batch is copied out at once, unless the task's code sees the rows first."""

    def __init__(self, arrays: Arrays, task: Task, seed: int, float_dtype: torch.dtype) -> None:
        super().__init__(task, seed, float_dtype, len(arrays))
        self._arrays = arrays
        self.may_draw = task.overrides("transform") or task.overrides("collate")

    def read(self, rows: Integers, epoch: int) -> Batch:
        if self.may_draw:
            return super().read(rows, epoch)
        return self._finished(self._arrays.taken(rows))

    def _found(self, rows: Integers) -> list[dict[str, Any]]:
        columns = self._arrays.some(rows)
        return [{name: values[place] for name, values in columns.items()} for place in range(len(rows))]
