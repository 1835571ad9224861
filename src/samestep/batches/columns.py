"""Rows of a data set as tensors: columns of numbers straight from Arrow's memory, the others as `dataset[i]` gives them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from samestep.batches.arrow import Column, as_column, fault
from samestep.batches.stacking import stack, torch_dtype
from samestep.errors import UsageError
from samestep.randomness.mixing import mix
from samestep.randomness.order import Integers
from samestep.task import Batch, Columns, Task

if TYPE_CHECKING:
    import datasets

_PLAIN = (None, "numpy", "torch")  # formats that do no more to numbers than `_straight_dtype` says
_TABLES = ("arrow", "pandas", "polars")
_ROW_IS_BATCH = (None, "torch")  # formats that give a row the same whichever rows are read with it


class Rows:
    """A split of a task, read by row number.

    Args:
        dataset: at least one row.
        float_dtype: what float64 columns become (Python's floats and CSV are float64): the model's own type, usually.

    Raises:
        UsageError: a column cannot be stacked, and no transform or collate of the task's will see it first.
    """

    def __init__(self, dataset: datasets.Dataset, task: Task, seed: int, float_dtype: torch.dtype) -> None:
        self._task, self._seed = task, seed
        self._float_dtype = float_dtype
        self.num_rows = len(dataset)
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
            return self._finished(self._assemble(self._python_rows(rows, epoch), rows.tolist()))
        wanted = rows if self._indices is None else self._indices[rows]
        batch = Columns()
        for name, column in self._columns.items():
            # memory of torch's own alignment: kernels may take other paths, and give other bits, on numpy's
            found, dtype = self._dtypes[name]
            tensor = torch.empty((len(rows), *column.shape), dtype=found)
            column.take(wanted, tensor.numpy())
            batch[name] = tensor if found is dtype else tensor.to(dtype)
        return batch

    def _finished(self, batch: Batch) -> Batch:
        return Columns(
            (name, tensor.to(self._float_dtype) if tensor.dtype == torch.float64 and name not in self._keep_float64 else tensor)
            for name, tensor in batch.items()
        )

    def _python_rows(self, rows: Integers, epoch: int) -> list[dict[str, Any]]:
        numbers = rows.tolist()
        found = [self._dataset[number] for number in numbers] if self._one_by_one else self._batch_rows(rows)
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

    def _batch_rows(self, rows: Integers) -> list[dict[str, Any]]:
        wanted = rows if self._indices is None else self._indices[rows]
        batch: dict[str, Any] = dict(self._others[rows.tolist()]) if self._others is not None else {}
        for name, column in self._columns.items():
            batch[name] = np.empty((len(rows), *column.shape), column.dtype)
            column.take(wanted, batch[name])
        return [{name: values[place] for name, values in batch.items()} for place in range(len(rows))]

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
                raise UsageError(f"data: row {numbers[0]} has the columns {', '.join(rows[0])}, and row {number} has "
                                 f"{', '.join(row)}; write the same for every row")  # fmt: skip
        return {name: stack(name, [row[name] for row in rows], numbers) for name in rows[0]}


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
