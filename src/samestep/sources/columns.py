"""Rows of a data set as tensors: columns of numbers straight from Arrow's memory, the others as `dataset[i]` gives them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from samestep.errors import UsageError
from samestep.randomness.order import Integers
from samestep.sources.arrow import Column, as_column, fault
from samestep.sources.rows import Rows, SourceRows
from samestep.sources.source import Source, is_dataset
from samestep.sources.stacking import torch_dtype
from samestep.task import Batch, Columns, Task

if TYPE_CHECKING:
    import datasets

_PLAIN = (None, "numpy", "torch")  # formats that do no more to numbers than `_straight_dtype` says
_TABLES = ("arrow", "pandas", "polars")
_ROW_IS_BATCH = (None, "torch")  # formats that give a row the same whichever rows are read with it


def make_rows(dataset: Any, task: Task, seed: int, float_dtype: torch.dtype) -> Rows:
    """The rows of what `data()` returned; see `Rows`."""
    if isinstance(dataset, Source):
        return dataset.as_rows(task, seed, float_dtype)
    return (TableRows if is_dataset(dataset) else SourceRows)(dataset, task, seed, float_dtype)


class TableRows(Rows):
    """Rows of a `datasets.Dataset`.

    Raises:
        UsageError: a column cannot be stacked, and no transform or collate of the task's will see it first.
    """

    def __init__(self, dataset: datasets.Dataset, task: Task, seed: int, float_dtype: torch.dtype) -> None:
        super().__init__(task, seed, float_dtype, len(dataset))
        self._indices = _indices(dataset)
        kind, options = dataset.format["type"], dataset.format["format_kwargs"]
        formatted, names = set(dataset.format["columns"]), _names(dataset)
        found = {name: as_column(dataset.data.column(name)) for name in names if not _is_decoded(dataset, name)}
        stacked_as_is = kind in _PLAIN and not (task.overrides("transform") or task.overrides("collate"))
        if stacked_as_is:
            nullable = formatted if kind else set()  # these formats make NaN of a null
            faults = [
                fault(name, dataset.data.column(name), self._indices, name in nullable)
                for name, column in found.items()
                if column is None
            ]
            if any(faults):
                raise UsageError(*filter(None, faults))
        columns = {name: column for name, column in found.items() if column is not None}
        if kind and not (stacked_as_is and len(columns) == len(names) and not options):
            columns = {}
        others = [name for name in names if name not in columns]
        self._columns = columns
        self._dtypes = {  # as they lie in the table, and as the task gets them
            name: (torch_dtype(column.dtype), _straight_dtype(kind if name in formatted else None, column, float_dtype))
            for name, column in columns.items()
        }
        self._keep_float64 = formatted if "dtype" in options else set()
        self._dataset = dataset
        self._others = dataset if not columns else dataset.select_columns(others) if others else None
        self._one_by_one = kind not in _ROW_IS_BATCH
        self.may_draw = not stacked_as_is or self._others is not None  # somebody's code sees each row, and may draw numbers

    def read(self, rows: Integers, epoch: int) -> Batch:
        """A micro-batch on the CPU: each column's tensor, of shape (len(rows), …), in an allocation of its own."""
        if self.may_draw:
            return super().read(rows, epoch)
        wanted = rows if self._indices is None else self._indices[rows]
        batch = Columns()
        for name, column in self._columns.items():
            # memory of torch's own alignment: kernels may take other paths, and give other bits, on numpy's
            found, dtype = self._dtypes[name]
            tensor = torch.empty((len(rows), *column.shape), dtype=found)
            column.take(wanted, tensor.numpy())
            batch[name] = tensor if found is dtype else tensor.to(dtype)
        return batch

    def _found(self, rows: Integers) -> list[dict[str, Any]]:
        return [self._dataset[number] for number in rows.tolist()] if self._one_by_one else self._batch_rows(rows)

    def _batch_rows(self, rows: Integers) -> list[dict[str, Any]]:
        wanted = rows if self._indices is None else self._indices[rows]
        batch: dict[str, Any] = dict(self._others[rows.tolist()]) if self._others is not None else {}
        for name, column in self._columns.items():
            batch[name] = np.empty((len(rows), *column.shape), column.dtype)
            column.take(wanted, batch[name])
        return [{name: values[place] for name, values in batch.items()} for place in range(len(rows))]


def _names(dataset: datasets.Dataset) -> list[str]:
    """The columns that a row has, under the data set's format."""
    form = dataset.format
    if form["type"] in _TABLES:
        raise UsageError(f'data: the data set has the format "{form["type"]}", whose rows are tables; write '
                         '.with_format(None), "numpy" or "torch" in data()')  # fmt: skip
    return [name for name in dataset.column_names if name in form["columns"] or form["output_all_columns"]]


def _straight_dtype(kind: str | None, column: Column, float_dtype: torch.dtype) -> torch.dtype:
    """What becomes of a column's dtype under a format without options.

    Both numpy's and torch's make float32 of floats and int64 of integers, but numpy's leaves a row's single number as it is.
    """
    found = torch_dtype(column.dtype)
    if kind is None or (kind == "numpy" and not column.shape):
        return float_dtype if found == torch.float64 else found
    return {"f": torch.float32, "i": torch.int64, "u": torch.int64}.get(column.dtype.kind, found)


def _is_decoded(dataset: datasets.Dataset, name: str) -> bool:
    """Whether a column's values are made from what is stored: images from their files' bytes, say."""
    return bool(dataset.features._column_requires_decoding[name])


def _indices(dataset: datasets.Dataset) -> Integers | None:
    """The row numbers that `select`, `shuffle` or `train_test_split` laid over the table, if any."""
    if dataset._indices is None:
        return None
    return np.asarray(dataset._indices.column(0).to_numpy(), dtype=np.int64)
