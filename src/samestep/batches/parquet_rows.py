"""Rows of Parquet files as micro-batches: columns of numbers straight from Arrow's memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from samestep.batches.rows import SourceRows
from samestep.batches.stacking import torch_dtype
from samestep.randomness.order import Integers
from samestep.task import Batch, Columns, Task

if TYPE_CHECKING:
    from samestep.batches.parquet import Parquet


class ParquetRows(SourceRows):
    def __init__(self, source: Parquet, task: Task, seed: int, float_dtype: torch.dtype) -> None:
        super().__init__(source, task, seed, float_dtype)
        self._parquet = source
        self.may_draw = task.overrides("transform") or task.overrides("collate")

    def read(self, rows: Integers, epoch: int) -> Batch:
        if self.may_draw:
            return super().read(rows, epoch)
        columns, places = self._parquet.columns(rows)
        batch = Columns()
        for name, column in columns.items():
            if column is None:  # of another shape, or no numbers: row by row, which gives the same, or says what is wrong
                return super().read(rows, epoch)
            batch[name] = torch.empty((len(rows), *column.shape), dtype=torch_dtype(column.dtype))
            column.take(places, batch[name].numpy())
        return self._finished(batch)
