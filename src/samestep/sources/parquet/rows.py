"""Rows of Parquet files as micro-batches: columns of numbers straight from Arrow's memory."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from samestep.randomness.order import Integers
from samestep.sources.arrow import Array
from samestep.sources.rows import SourceRows
from samestep.sources.stacking import torch_dtype
from samestep.task import Batch, Columns, Task


class InParts(Protocol):
    """A source that has its columns in several parts, which are rows of one shape each."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> Any: ...

    def columns(self, rows: Integers) -> tuple[dict[str, list[Array] | None], list[int], list[int]]: ...


class ParquetRows(SourceRows):
    def __init__(self, source: InParts, task: Task, seed: int, float_dtype: torch.dtype) -> None:
        super().__init__(source, task, seed, float_dtype)
        self._parquet = source
        self.may_draw = task.overrides("transform") or task.overrides("collate")

    def read(self, rows: Integers, epoch: int) -> Batch:
        if self.may_draw:
            return super().read(rows, epoch)
        columns, parts, places = self._parquet.columns(rows)
        batch = Columns()
        for name, arrays in columns.items():
            if arrays is None:  # of another shape, or no numbers: row by row, which gives the same, or says what is wrong
                return super().read(rows, epoch)
            batch[name] = torch.empty((len(rows), *arrays[0].shape[1:]), dtype=torch_dtype(arrays[0].dtype))
            out = batch[name].numpy()
            for number, (part, place) in enumerate(zip(parts, places, strict=True)):
                out[number] = arrays[part][place]
        return self._finished(batch)
