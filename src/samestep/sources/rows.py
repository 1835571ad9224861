"""Rows of a split as micro-batches: read by their numbers, changed by the task, put together into tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from samestep.errors import UsageError
from samestep.randomness.mixing import mix
from samestep.randomness.order import Integers
from samestep.sources.stacking import stack
from samestep.task import Batch, Columns, Task


class Rows:
    """A split of a task, read by row number.

    Args:
        num_rows: one at least.
        float_dtype: what float64 becomes (Python's floats and CSV are float64): the model's own type, usually.
    """

    may_draw = True  # somebody's code sees each row, and may draw numbers

    def __init__(self, task: Task, seed: int, float_dtype: torch.dtype, num_rows: int) -> None:
        self._task, self._seed, self._float_dtype, self.num_rows = task, seed, float_dtype, num_rows
        self._keep_float64: set[str] = set()

    def read(self, rows: Integers, epoch: int) -> Batch:
        """A micro-batch on the CPU: each column's tensor, of shape (len(rows), …), in an allocation of its own."""
        return self._finished(self._assemble(self._changed(self._found(rows), rows.tolist(), epoch), rows.tolist()))

    def _found(self, rows: Integers) -> list[Any]:
        """The rows as the data set gives them."""
        raise NotImplementedError

    def _changed(self, found: list[Any], numbers: list[int], epoch: int) -> list[Any]:
        if not self._task.overrides("transform"):
            return found
        transformed = []
        for row, number in zip(found, numbers, strict=True):
            rng = np.random.Generator(np.random.Philox(mix(self._seed, epoch, number)))
            result = self._task.transform(row, rng)
            if not isinstance(result, Mapping):
                raise UsageError(f"task: transform returned {type(result).__name__} for row {number}; write return row, a dict")
            transformed.append(result)
        return transformed

    def _assemble(self, rows: list[dict[str, Any]], numbers: list[int]) -> Batch:
        if self._task.overrides("collate"):
            batch = self._task.collate(rows)
            if not isinstance(batch, Mapping):
                raise UsageError(f"task: collate returned {type(batch).__name__}; write a dict of column name to tensor")
            for name, value in batch.items():
                if not isinstance(value, torch.Tensor):
                    raise UsageError(f"task: collate returned {type(value).__name__} for {name}; write a tensor")
            return {name: tensor.clone() if tensor.storage_offset() else tensor for name, tensor in batch.items()}
        for row, number in zip(rows, numbers, strict=True):
            if row.keys() != rows[0].keys():
                raise UsageError(f"data: row {numbers[0]} has the columns {', '.join(map(str, rows[0]))}, and row "
                                 f"{number} has {', '.join(map(str, row))}; write the same for every row")  # fmt: skip
        return {name: stack(name, [row[name] for row in rows], numbers) for name in rows[0]}

    def _finished(self, batch: Batch) -> Batch:
        finished = Columns(batch)
        for name, tensor in batch.items():
            if tensor.dtype == torch.float64 and name not in self._keep_float64:
                finished[name] = tensor.to(self._float_dtype)
        return finished


class SourceRows(Rows):
    """Rows of anything with `__len__` and `__getitem__`: an array, torch's map-style Dataset, an index over files.

    `__getitems__`, where it has that, is asked for a micro-batch at once.
    """

    def __init__(self, source: Any, task: Task, seed: int, float_dtype: torch.dtype) -> None:
        super().__init__(task, seed, float_dtype, len(source))
        self._source = source

    def _found(self, rows: Integers) -> list[Any]:
        numbers, source = rows.tolist(), self._source
        found = list(source.__getitems__(numbers)) if hasattr(source, "__getitems__") else [source[n] for n in numbers]
        if self._task.overrides("transform") or self._task.overrides("collate"):
            return [_lent(row) for row in found]
        if isinstance(found[0], tuple):  # as torch's data sets give them: columns by their places
            return [dict(enumerate(row)) for row in found]
        if not isinstance(found[0], Mapping):
            raise UsageError(
                f"data: row {rows[0]} is of type {type(found[0]).__name__}; give dicts of column name to value, tuples, or "
                "write a transform(row, rng) that makes one of it (docs/data.md)"
            )
        return found


def _lent(value: Any) -> Any:
    """A row that may be written into while the source keeps its own: a copy of what rows are usually made of."""
    kind = type(value)
    if kind is dict:
        return {name: _lent(part) for name, part in value.items()}
    if kind is tuple:
        return tuple([_lent(part) for part in value])
    if isinstance(value, np.ndarray):
        return value.copy("K") if value.flags.writeable else value
    if isinstance(value, torch.Tensor):
        return value.clone()
    return value.copy() if kind in (list, set, bytearray) else value
