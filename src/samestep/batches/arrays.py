"""Columns in memory, as tensors or arrays by their names: what a script that reads no files has at hand."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import xxhash

from samestep.batches.rows import Rows
from samestep.batches.source import HEAD_ROWS, SLICE_ROWS, SLICES, WHOLE_BYTES, Source
from samestep.errors import UsageError
from samestep.randomness.order import Integers, Order
from samestep.task import Batch, Columns, Task


def are_arrays(found: object) -> bool:
    """Whether it is what `Arrays` takes."""
    return isinstance(found, Mapping) and bool(found) and all(isinstance(v, (torch.Tensor, np.ndarray)) for v in found.values())


class Arrays(Source):
    """Rows along the first dimension of tensors or NumPy arrays, a column each.

    Args:
        columns: of one length; they stay where they are, unless they lie on a GPU.

    Raises UsageError for columns of several lengths, and for what torch has no numbers for.
    """

    def __init__(self, columns: Mapping[str, Any]) -> None:
        self.columns = {str(name): _as_tensor(str(name), column) for name, column in columns.items()}
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

    def some(self, rows: Integers) -> dict[str, Any]:
        """Each column's values in these rows, of the kind that was given, in memory of their own."""
        wanted = torch.from_numpy(rows)
        found = {name: torch.index_select(column, 0, wanted) for name, column in self.columns.items()}
        return {name: values.numpy() if name in self._numpy else values for name, values in found.items()}

    def as_rows(self, task: Task, seed: int, float_dtype: torch.dtype) -> Rows:
        return ArrayRows(self, task, seed, float_dtype)

    def order(self, seed: int) -> Order:
        return Order(len(self), seed)

    def identity(self, apart: bool = False) -> dict[str, Any]:
        length = len(self)
        whole = sum(column.nbytes for column in self.columns.values()) <= WHOLE_BYTES
        starts = [0] if whole else np.unique(np.linspace(0, max(0, length - SLICE_ROWS), SLICES).astype(int)).tolist()
        return {
            "rows": length,
            "columns": [
                f"{name}: {str(column.dtype).removeprefix('torch.')} {tuple(column.shape[1:])}"
                for name, column in self.columns.items()
            ],
            "format": "arrays",
            "checksum": self._checksum(starts, length if whole else SLICE_ROWS),
            "head": self._checksum([0], HEAD_ROWS),
            "whole": whole,
            "fingerprint": "",
        }

    def _checksum(self, starts: list[int], num_rows: int) -> str:
        digest = xxhash.xxh3_128()
        for start in starts:
            for name, column in self.columns.items():
                digest.update(name.encode())
                digest.update(column[start : start + num_rows].contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return str(digest.hexdigest())


def _as_tensor(name: str, column: torch.Tensor | np.ndarray[Any, Any]) -> torch.Tensor:
    if isinstance(column, np.ndarray):
        if not column.dtype.isnative or min(column.strides, default=0) < 0:  # torch knows neither
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
        wanted = torch.from_numpy(rows)
        batch = Columns()
        for name, column in self._arrays.columns.items():
            taken = torch.index_select(column, 0, wanted)
            batch[name] = taken.to(self._float_dtype) if taken.dtype == torch.float64 else taken
        return batch

    def _found(self, rows: Integers) -> list[dict[str, Any]]:
        columns = self._arrays.some(rows)
        return [{name: values[place] for name, values in columns.items()} for place in range(len(rows))]
